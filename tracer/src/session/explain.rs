//! From a record to an incident: its facts, its verdict, the request that it belongs to, and what nginx itself says of it.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{
    Held, Session,
    clock::{monotonic_ns, wall_clock},
    complain, narrow, notes, said, unix,
};
use crate::{
    correlate::{Case, request::Attribution, said::STATUS_UNSEEN, talk},
    diagnose,
    event::{Attempt, Stage, said::Said},
    moment::Moment,
    report::Incident,
    sys::{proc, process},
};

impl Session<'_> {
    pub(super) fn explain(&mut self, held: Held) -> Result<()> {
        let Held { mut attempt, client_gone, .. } = held;
        self.refused.attempt(&attempt.denials);
        if self.watch.get(attempt.worker).is_none() {
            complain(&self.watch.scan(&mut self.maps)?);
            self.enter_older();
        }
        let Some(worker) = self.watch.get(attempt.worker).cloned() else {
            // Its process was never seen as nginx, or ended long ago.
            self.unread += 1;
            return Ok(());
        };
        if matches!(attempt.stage, Stage::Bind | Stage::Socket) && !serves(attempt.worker) {
            // A master that cannot bind a listen socket is no upstream failure.
            return Ok(());
        }
        if attempt.unix.is_some() && unix::is_foreign(&attempt, &worker) {
            return Ok(());
        }
        self.add_late_evidence(&mut attempt);
        let mut reach = self.reach;
        attempt.deduce_reset(reach.icmp);
        if attempt.lost_its_error() {
            attempt.deduce_give_up(self.gatherer.syn_retries(&attempt));
        }
        // An error that nginx had read before the record was made left a trace only where ICMP is seen.
        attempt.evidence_gap |=
            self.was_blind(&attempt) || (attempt.missed_end && !attempt.reset && !reach.icmp);
        if attempt.evidence_gap {
            reach.drops = false;
            reach.accept_queue = false;
        }
        let facts = self.gatherer.gather(&attempt, reach);
        let (config, bind_lines) = match attempt.stage {
            Stage::Socket | Stage::Untried => (Vec::new(), Vec::new()),
            Stage::Bind => (Vec::new(), narrow::bind_lines(&worker.config, attempt.remote.ip(), None)),
            Stage::Connect | Stage::SynSent | Stage::Established => {
                (worker.config.candidates_of(&attempt), Vec::new())
            }
        };
        let (time, mono_ns) = (Moment::local(wall_clock(attempt.end_ns)), attempt.end_ns);
        let mut case = Case { client_gone, ..Case::new(attempt, reach, facts, config) };
        self.gatherer.backends.note_idle(&mut case);
        if !talk::is_failure(&case) {
            return Ok(());
        }
        complain(self.traces.arm(&mut self.gatherer, &case).as_slice());
        case.story = Some(Box::new(notes::story(&case, &worker)));
        let verdict = diagnose::verdict(&case);
        self.alone.failed(&case, verdict.cause, &worker);
        let incident = Incident {
            time,
            mono_ns,
            shown_ns: 0,
            case,
            verdict,
            container: worker.container.clone(),
            bind_lines,
            attribution: Attribution::default(),
            repeats: None,
        };
        if incident.case.attempt.exemplar {
            self.storm.keep(&incident, Instant::now());
        }
        let heard = self.uprobes.hear(worker.master);
        match self.requests.attribute(incident, heard, Instant::now()) {
            Some(incident) => self.show(incident),
            None => Ok(()),
        }
    }

    /// Shows the incidents that wait for their request no longer. True if no more are wanted.
    pub(super) fn show_settled(&mut self) -> Result<bool> {
        for incident in self.requests.settled(Instant::now()) {
            if self.enough() {
                break;
            }
            self.show(incident)?;
        }
        Ok(self.enough())
    }

    /// True if no more incidents are wanted.
    pub(super) fn enough(&self) -> bool {
        self.filter.count.is_some_and(|count| self.shown >= count)
    }

    pub(super) fn show(&mut self, mut incident: Incident) -> Result<()> {
        if let Some(worker) = self.watch.get(incident.case.attempt.worker) {
            let said = self.requests.word(&incident).map(|said| (said, said::place(said, worker)));
            if let Some((said, place)) = &said
                && self.requests.answered_itself(said)
                && let Some(request) = &mut incident.attribution.request
                && let Some(status) = request.status
            {
                let of_case = || incident.case.config.iter().flat_map(|c| &c.passes).copied().collect();
                let passes: Vec<usize> = place.as_ref().map_or_else(of_case, |place| place.passes.clone());
                request.status = worker.config.model.shown_status(&passes, status);
                if request.status.is_none() && incident.attribution.note.is_none() {
                    incident.attribution.note = Some(STATUS_UNSEEN.into());
                }
            }
            let case = &mut incident.case;
            if said.as_ref().is_some_and(|(said, _)| said.session && said.connected) {
                // nginx ends the session by itself then; where it leaves bytes unread, its RST ends the client's socket on loopback.
                case.client_gone.take_if(|(_, reset)| *reset);
            }
            let noted = said.as_ref().filter(|(said, _)| !said.has_header).and_then(|(said, _)| said.noted);
            case.attempt.noted = case.attempt.noted.or(noted.filter(|status| matches!(status, 502 | 504)));
            case.facts.said = match &said {
                Some((said, _)) => Some(said.said()),
                None => self.uprobes.would_tell(worker.master).then_some(Said::Nothing),
            };
            case.word = said.as_ref().map(|(said, place)| Box::new(said::word(said, place.is_some())));
            let (asked, told) = (case.facts.said.is_some(), case.word.is_some());
            let place = said.as_ref().and_then(|(_, place)| place.as_ref());
            let changed = narrow::by_request(&mut incident, worker, place);
            if changed || asked || told {
                incident.explain();
            }
        }
        // What nginx told its client can settle that nothing was wrong.
        if !talk::is_failure(&incident.case) {
            return Ok(());
        }
        self.tell(incident)
    }

    /// Tells of those that were counted and not looked at one by one. True if no more incidents are wanted.
    pub(super) fn tell_counted(&mut self) -> Result<bool> {
        let (now, now_ns) = (Instant::now(), monotonic_ns());
        let is_watched = |pid| self.watch.get(pid).is_some();
        let (news, gone) = self.storm.look(self.maps.repeats(), is_watched, now, now_ns);
        for alike in gone {
            self.maps.forget_repeats(&alike);
        }
        for incident in news {
            if self.enough() {
                break;
            }
            self.tell(incident)?;
        }
        Ok(self.enough())
    }

    /// Tells of an incident about which all is known.
    fn tell(&mut self, mut incident: Incident) -> Result<()> {
        incident.shown_ns = monotonic_ns();
        let wanted = self.filter.select.matches(&incident);
        if let Some(recorder) = self.recorder.as_mut().filter(|recorder| wanted || recorder.keeps()) {
            let asked = wanted && !self.filter.select.is_empty();
            complain(&recorder.incident(&incident, asked, incident.shown_ns));
        }
        if !wanted {
            return Ok(());
        }
        *self.incidents.entry(incident.verdict.cause).or_default() += incident.attempts();
        self.shown += 1;
        self.report
            .tick(&mut *self.out, incident.shown_ns)
            .and_then(|()| self.report.incident(&mut *self.out, &incident))
            .context("cannot write to stdout")
    }
}

/// An attempt that nginx gave up waits for the note that its client had left; one that the far end closed, for what
/// becomes of the process that did it.
pub(super) fn needs_company(attempt: &Attempt) -> bool {
    match attempt.stage {
        Stage::SynSent => attempt.app_closed,
        // So does one that its server, perhaps, ended by dying; the answer of a server that goes on waits for nobody.
        Stage::Established => attempt.talk.as_ref().is_some_and(|talk| !talk.said_5xx),
        Stage::Socket | Stage::Bind | Stage::Connect | Stage::Untried => false,
    }
}

/// A server's own 500 is, now and then, what a process says as it is told to end (gunicorn's `--timeout`): the close that tells of the
/// signal comes right behind it.
pub(super) fn may_be_a_last_word(attempt: &Attempt) -> bool {
    attempt.talk.as_ref().is_some_and(|talk| talk.said_5xx && talk.status == Some(500))
}

/// True if the process makes upstream connections, by its title now; a process that is gone counts as one.
pub(super) fn serves(pid: u32) -> bool {
    let Ok(title) = proc::read_up_to(format!("/proc/{pid}/cmdline"), 4096) else {
        return true;
    };
    title.is_empty() || process::role_of(&title).serves()
}
