//! AppArmor: which profile confines a process, and what the profile's file says (apparmor.d(5)).
//!
//! The reader knows as much of the language as naming a line takes: headers, nested profiles and hats, includes, and
//! `network`, `unix` and file rules. What it does not understand it skips, and says so ([`Text::whole`]).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::proc;

/// Where profiles lie.
pub const FOLDER: &str = "/etc/apparmor.d";
/// Includes below includes.
const DEPTH: u32 = 8;
/// A profile's file has some kilobytes.
const MOST_BYTES: usize = 1 << 20;

/// A statement of a profile, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// On one line, without the comma.
    pub text: String,
}

/// What the file says of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Where the profile begins.
    pub header: Rule,
    /// Every statement, those of included files in their place.
    pub rules: Vec<Rule>,
    /// Every included file was found.
    pub whole: bool,
    /// The included file for local additions, there or not.
    pub local: Option<PathBuf>,
}

/// What a rule has to say about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// It allows it.
    Allow,
    /// It refuses it; true if it says `audit`.
    Deny(bool),
}

/// A process's profile and its mode (`enforce`, `complain`, `kill`, `unconfined`); None if there is no AppArmor or the
/// process is gone.
#[must_use]
pub fn confinement(pid: u32) -> Option<(String, Option<String>)> {
    // `attr/current` is whichever module's is the first: SELinux's context is no profile. This one is AppArmor's own (5.8).
    let bytes = proc::read_up_to(format!("/proc/{pid}/attr/apparmor/current"), 8192).ok()?;
    // The end of the line is not part of the name.
    let text = Some(proc::printable(bytes.trim_ascii_end())).filter(|text| !text.is_empty())?;
    Some(label(&text))
}

/// `nginx (enforce)`.
fn label(text: &str) -> (String, Option<String>) {
    let text = text.trim_end_matches(['\n', '\0']).trim();
    match text.rsplit_once(" (") {
        Some((name, mode)) if mode.ends_with(')') => {
            (name.to_owned(), Some(mode.trim_end_matches(')').to_owned()))
        }
        _ => (text.to_owned(), None),
    }
}

/// Finds the profile of that name among the files of a folder ([`FOLDER`]).
#[must_use]
pub fn find(folder: &Path, profile: &str) -> Option<Text> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.sort();
    files.iter().find_map(|file| {
        let bytes = proc::read_up_to(file, MOST_BYTES).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        // Most files hold other profiles: the first part of the name must be in there.
        let first = profile.split("//").next().unwrap_or(profile);
        if !text.contains(first) {
            return None;
        }
        read(folder, file, &text, profile)
    })
}

/// Reads one profile out of a file's text.
fn read(folder: &Path, file: &Path, text: &str, profile: &str) -> Option<Text> {
    let mut found: Option<Text> = None;
    let mut open: Vec<String> = Vec::new();
    for (line, end, statement) in statements(text) {
        match end {
            '{' => {
                let name = header_name(&statement, !open.is_empty()).unwrap_or_default();
                let whole = match open.last() {
                    Some(parent) => format!("{parent}//{name}"),
                    None => name,
                };
                if whole == profile && found.is_none() {
                    let header = Rule { file: file.to_owned(), line, text: format!("{statement} {{") };
                    found = Some(Text { header, rules: Vec::new(), whole: true, local: None });
                }
                open.push(whole);
            }
            '}' => {
                open.pop();
            }
            _ if open.last().is_some_and(|name| name == profile) => {
                if let Some(found) = &mut found {
                    add(found, folder, file, line, statement, DEPTH);
                }
            }
            _ => {}
        }
    }
    found
}

/// Adds a statement, or what it includes.
fn add(text: &mut Text, folder: &Path, file: &Path, line: usize, statement: String, depth: u32) {
    let bare = statement.trim_start_matches('#');
    let Some(target) = bare.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) else {
        text.rules.push(Rule { file: file.to_owned(), line, text: statement });
        return;
    };
    let target = target.trim();
    let optional = target.strip_prefix("if exists").map(str::trim);
    let name = optional.unwrap_or(target).trim_matches(['<', '>', '"']);
    let path = if name.starts_with('/') { PathBuf::from(name) } else { folder.join(name) };
    if path.starts_with(folder.join("local")) {
        text.local.get_or_insert_with(|| path.clone());
    }
    let included = if path.is_dir() {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&path).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        files.sort();
        files
    } else {
        vec![path]
    };
    for path in included {
        match proc::read_up_to(&path, MOST_BYTES) {
            Ok(bytes) if depth > 0 => {
                let content = String::from_utf8_lossy(&bytes).into_owned();
                for (line, end, statement) in statements(&content) {
                    if end == ',' {
                        add(text, folder, &path, line, statement, depth - 1);
                    }
                }
            }
            _ => text.whole &= optional.is_some(),
        }
    }
}

/// The statements of a profile's text: where each begins, what ends it (`,`, `{`, `}`), its words on one line. An
/// include ends with its line and counts as ended by a comma.
fn statements(text: &str) -> Vec<(usize, char, String)> {
    let mut found = Vec::new();
    let (mut statement, mut begun) = (String::new(), 0);
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let include = trimmed.trim_start_matches('#');
        if statement.is_empty()
            && include.strip_prefix("include").is_some_and(|rest| rest.starts_with([' ', '\t']))
        {
            found.push((at + 1, ',', include.split(" #").next().unwrap_or(include).trim().to_owned()));
            continue;
        }
        let (mut quoted, mut braces, mut last) = (false, 0_u32, ' ');
        for (index, c) in trimmed.char_indices() {
            // A comment; but `#` within a word is part of a path.
            if c == '#' && !quoted && last.is_whitespace() {
                break;
            }
            if statement.is_empty() && !c.is_whitespace() {
                begun = at + 1;
            }
            let rest = trimmed.get(index + c.len_utf8()..).unwrap_or_default();
            // `{a,b}` in a path, and the variable `@{X}`, against the braces of a profile.
            let opens_block = c == '{' && last.is_whitespace();
            match c {
                '"' => quoted = !quoted,
                '{' if !quoted && !opens_block => braces += 1,
                '}' if !quoted && braces > 0 => braces -= 1,
                ',' if !quoted && braces == 0 && (rest.is_empty() || rest.starts_with([' ', '\t'])) => {
                    found.push((begun, ',', std::mem::take(&mut statement).trim().to_owned()));
                    last = ' ';
                    continue;
                }
                '{' | '}' if !quoted && braces == 0 => {
                    let words = std::mem::take(&mut statement).trim().to_owned();
                    found.push((if words.is_empty() { at + 1 } else { begun }, c, words));
                    last = ' ';
                    continue;
                }
                _ => {}
            }
            if !(statement.is_empty() && c.is_whitespace()) {
                statement.push(c);
            }
            last = c;
        }
        if !statement.is_empty() {
            statement.push(' ');
        }
    }
    found
}

/// The name that a header gives its profile: `profile NAME [PATH] [flags=(…)]`, `PATH [flags=(…)]`, and of nested ones
/// also `^HAT` and `hat HAT`.
fn header_name(header: &str, nested: bool) -> Option<String> {
    let mut words = words(header).into_iter();
    let first = words.next()?;
    let name = match first.as_str() {
        "profile" | "hat" => words.next()?,
        hat if nested && hat.starts_with('^') => hat.trim_start_matches('^').to_owned(),
        _ => first,
    };
    Some(name)
}

/// Words, of which quoted ones may hold spaces.
fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        found.push(word);
    }
    found
}

/// What a rule says about a socket of that family (`inet`, `inet6`, `unix`) and of type `stream`; None if it is about
/// something else.
#[must_use]
pub fn about_network(rule: &str, family: &str) -> Option<Says> {
    let (says, rest) = qualified(rule);
    // `unix (connect) type=stream,` narrows `network unix`; with a peer or an address it does not speak of all.
    if let Some(rest) = rest.strip_prefix("unix").filter(|r| r.is_empty() || r.starts_with([' ', '('])) {
        let narrow = rest.contains("peer=") || rest.contains("addr=") || rest.contains("type=dgram");
        return (family == "unix" && !narrow).then_some(says);
    }
    let rest = rest.strip_prefix("network").filter(|rest| rest.is_empty() || rest.starts_with(' '))?;
    for word in rest.split_whitespace() {
        let fits = match word {
            "stream" => true,
            "tcp" => family != "unix",
            "dgram" | "seqpacket" | "rdm" | "raw" | "packet" | "udp" | "icmp" => false,
            // Rules about addresses, ports and permissions (AppArmor 4) do not speak of every socket.
            narrow if narrow.contains('=') || narrow.starts_with('(') => false,
            domain => domain == family,
        };
        if !fits {
            return None;
        }
    }
    Some(says)
}

/// What a rule says about writing to a file, which connecting to its socket is; None if it is about something else.
#[must_use]
pub fn about_file(rule: &str, path: &str) -> Option<Says> {
    let (says, rest) = qualified(rule);
    let words = words(rest.strip_prefix("file ").unwrap_or(rest));
    let [first, second, ..] = words.as_slice() else {
        // `file,` speaks of every file.
        return (rest == "file").then_some(says);
    };
    let is_path = |word: &str| word.starts_with(['/', '@', '{']);
    let (pattern, permissions) = if is_path(first) { (first, second) } else { (second, first) };
    let perms = permissions.chars().all(|c| "rwaxmlkdixpPuUcC".contains(c));
    (perms && permissions.contains('w') && is_path(pattern) && fits(pattern, path)).then_some(says)
}

/// What a rule's leading words make of it.
fn qualified(rule: &str) -> (Says, &str) {
    let (mut audit, mut deny, mut rest) = (false, false, rule.trim());
    loop {
        let (word, behind) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match word {
            "audit" => audit = true,
            "deny" => deny = true,
            "allow" | "owner" => {}
            _ => break,
        }
        rest = behind.trim_start();
    }
    (if deny { Says::Deny(audit) } else { Says::Allow }, rest)
}

/// AppArmor's globs (apparmor.d(5)): `*` and `?` not across `/`, `**` across, `{a,b}`, `[ab]`. A variable fits nothing:
/// its value is not known.
fn fits(pattern: &str, path: &str) -> bool {
    if let Some((before, rest)) = pattern.split_once('{') {
        let Some((choices, after)) = rest.split_once('}') else { return false };
        return !before.ends_with('@')
            && choices.split(',').any(|choice| fits(&format!("{before}{choice}{after}"), path));
    }
    glob(pattern.as_bytes(), path.as_bytes())
}

fn glob(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| glob(rest, path.get(at..).unwrap_or_default())),
        [b'*', rest @ ..] => {
            let most = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            (0..=most).any(|at| glob(rest, path.get(at..).unwrap_or_default()))
        }
        [b'?', rest @ ..] => matches!(path, [b, tail @ ..] if *b != b'/' && glob(rest, tail)),
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let (set, rest) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
            matches!(path, [b, tail @ ..] if *b != b'/' && set.contains(b) && glob(rest, tail))
        }
        [b, rest @ ..] => matches!(path, [first, tail @ ..] if first == b && glob(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!(label("unconfined\n"), ("unconfined".to_owned(), None));
        assert_eq!(
            label("/usr/sbin/nginx (enforce)\n"),
            ("/usr/sbin/nginx".to_owned(), Some("enforce".to_owned()))
        );
        assert_eq!(label("a b//hat (complain)"), ("a b//hat".to_owned(), Some("complain".to_owned())));
    }

    #[test]
    fn network_rules() {
        let inet = |rule| about_network(rule, "inet");
        assert_eq!(inet("network"), Some(Says::Allow));
        assert_eq!(inet("network inet"), Some(Says::Allow));
        assert_eq!(inet("network tcp"), Some(Says::Allow));
        assert_eq!(inet("deny network inet stream"), Some(Says::Deny(false)));
        assert_eq!(inet("audit deny network inet tcp"), Some(Says::Deny(true)));
        for other in
            ["network inet6 stream", "network inet dgram", "network unix", "networks", "unix", "/a rw"]
        {
            assert_eq!(inet(other), None, "{other}");
        }
        assert_eq!(about_network("unix (connect, send) type=stream", "unix"), Some(Says::Allow));
        assert_eq!(about_network("deny unix peer=(addr=@x)", "unix"), None);
    }

    #[test]
    fn file_rules() {
        let socket = |rule| about_file(rule, "/run/php/fpm.sock");
        assert_eq!(socket("/run/php/*.sock rw"), Some(Says::Allow));
        assert_eq!(socket("/{,var/}run/** w"), Some(Says::Allow));
        assert_eq!(socket("rw /run/php/fpm.soc[kx]"), Some(Says::Allow));
        assert_eq!(socket("audit deny file /run/** w"), Some(Says::Deny(true)));
        for other in ["/run/php/*.sock r", "/run/* rw", "@{run}/php/fpm.sock rw", "capability chown"] {
            assert_eq!(socket(other), None, "{other}");
        }
    }

    #[test]
    fn a_profile_is_found_with_its_lines() {
        let dir = std::env::temp_dir().join(format!("why502-apparmor-{}", std::process::id()));
        fs::create_dir_all(dir.join("abstractions")).unwrap();
        fs::write(dir.join("abstractions/net"), "# all\nnetwork inet6,\n").unwrap();
        let text = "abi <abi/3.0>,\n#include <tunables/global>\n\
            profile other /bin/other {\n  network,\n}\n\
            profile \"my nginx\" /usr/sbin/ngin{x,y} flags=(attach_disconnected) {\n\
            \x20 # a comment, with a comma\n  #include <abstractions/net>\n  include if exists <local/my-nginx>\n\
            \x20 /etc/nginx/{a,b}/** r,\n  deny network\n    inet stream, # quiet\n\
            \x20 ^hat {\n    network inet,\n  }\n  network unix,\n}\n";
        fs::write(dir.join("usr.sbin.nginx"), text).unwrap();
        let found = find(&dir, "my nginx").unwrap();
        let hat = find(&dir, "my nginx//hat").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let rules: Vec<(usize, &str)> = found.rules.iter().map(|r| (r.line, r.text.as_str())).collect();
        assert_eq!(
            rules,
            [
                (2, "network inet6"),
                (10, "/etc/nginx/{a,b}/** r"),
                (11, "deny network inet stream"),
                (16, "network unix"),
            ]
        );
        assert_eq!(found.header.line, 6);
        assert!(found.whole);
        assert_eq!(found.local, Some(dir.join("local/my-nginx")));
        assert_eq!(hat.rules.iter().map(|r| r.line).collect::<Vec<_>>(), [14]);
        assert_eq!(find(Path::new("/nonexistent"), "x"), None);
    }
}
