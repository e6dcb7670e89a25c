//! What the configuration's story and nginx's own word add to a verdict; they change neither cause nor confidence.

use super::{Evidence, Fix, Verdict};
use crate::{
    correlate::{
        Case,
        story::{Change, Changed, StaleName, Story, Word},
    },
    event::said::Place,
};

/// Adds what concerns a case.
pub(crate) fn add(verdict: &mut Verdict, case: &Case) {
    if let Some(story) = case.story.as_deref() {
        add_story(verdict, case, story);
    }
    if let Some(word) = &case.word {
        verdict.evidence.push(said(word));
    }
}

fn add_story(verdict: &mut Verdict, case: &Case, story: &Story) {
    if let Some(main) = &story.guessed {
        verdict.evidence.push(Evidence {
            kind: "config-unknown",
            text: format!(
                "nginx's command line is cut off in its title: it may run with another configuration than {}",
                main.0.display()
            ),
        });
    }
    verdict.evidence.extend(story.changed.as_ref().map(changed));
    for name in &story.names {
        stale(verdict, case, story, name);
    }
}

fn changed(changed: &Changed) -> Evidence {
    let Changed { path, others, how, started } = changed;
    let (path, others) = (path.0.display(), and_others(*others));
    let what = match how {
        Change::At(at) => format!("changed on disk at {at}"),
        Change::Other => "is another file now".to_owned(),
        Change::Gone => "cannot be read any more".to_owned(),
        Change::Added => "was added".to_owned(),
    };
    let text = match started {
        Some(started) => format!(
            "{path}{others} {what}, after this worker started (at {started}): the configuration lines may differ from \
             what it runs"
        ),
        None => format!(
            "{path}{others} {what}, after nginx had read its configuration: this worker runs the lines as they were \
             before, and so they are shown"
        ),
    };
    Evidence { kind: "config-changed", text }
}

fn stale(verdict: &mut Verdict, case: &Case, story: &Story, name: &StaleName) {
    let address = case.attempt.remote.ip();
    let list: Vec<String> = name.now.iter().map(ToString::to_string).collect();
    let now = if list.is_empty() {
        "does not resolve now".to_owned()
    } else {
        format!("resolves to {} now", list.join(", "))
    };
    let text = if name.kept {
        format!(
            "nginx's own memory holds {address} for {}, which {now}: nginx keeps the addresses that it got when it started or \
             was reloaded",
            name.name,
        )
    } else if name.did {
        format!(
            "{} resolved to {address} when why502 read the configuration, and {now}: nginx keeps the addresses that it \
             got when it started or was reloaded",
            name.name,
        )
    } else {
        format!(
            "{} {now}, not to {address}: nginx keeps the addresses that it got when it started or was reloaded, and may \
             have got this one",
            name.name,
        )
    };
    verdict.evidence.push(Evidence { kind: "dns-stale", text });
    if !name.now.is_empty() {
        let reload = Fix {
            text: format!("reload nginx, so that it resolves {} again", name.name),
            command: Some(format!("kill -HUP {}", story.master)),
        };
        // It had the address from this name: nobody needs to be there any more.
        let at = if name.did || name.kept { 0 } else { verdict.fix.len() };
        verdict.fix.insert(at, reload);
    }
}

/// What nginx says, in its words.
fn said(word: &Word) -> Evidence {
    let at = |place: &Place| format!("the server of {}:{}", place.file.display(), place.line);
    let place = match &word.place {
        Some(place) if place.location.is_empty() => format!(" at {}", at(place)),
        Some(place) => format!(
            " at location {} of {}",
            String::from_utf8_lossy(&place.location).escape_debug(),
            at(place)
        ),
        None => String::new(),
    };
    let text = match (&word.text, word.errno) {
        (Some(text), Some(errno)) => format!("nginx says “{text}” ({errno}){place}"),
        (Some(text), None) => format!("nginx says “{text}”{place}"),
        (None, _) => format!("by nginx's memory the attempt failed{place}"),
    };
    Evidence { kind: "nginx-said", text }
}

/// ` and 2 other files`; nothing for none.
#[must_use]
pub fn and_others(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " and 1 other file".to_owned(),
        more => format!(" and {more} other files"),
    }
}
