//! Which label a path should have: `contexts/files/file_contexts` and its companions, as libselinux reads them
//! (file_contexts(5)): the last line that fits decides.

use regex_lite::Regex;

/// Kinds of files that lines can be limited to.
const SOCKET: &str = "-s";

/// Where a path is looked up under another name: `file_contexts.subs` and `.subs_dist`, lines of `ALIAS ORIGINAL`.
#[must_use]
pub fn substitute(path: &str, lines: &str) -> String {
    for line in lines.lines() {
        let mut words = line.split_whitespace();
        if let (Some(alias), Some(original)) = (words.next(), words.next())
            && !alias.starts_with('#')
            && let Some(rest) = path.strip_prefix(alias)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return format!("{original}{rest}");
        }
    }
    path.to_owned()
}

/// The context of a socket file with this path, of `lines` (file_contexts, then `.homedirs`, then `.local`); None if no
/// line fits or the last one says `<<none>>`.
#[must_use]
pub fn of_socket(path: &str, lines: &str) -> Option<String> {
    let mut found = None;
    for line in lines.lines() {
        let mut words = line.split_whitespace();
        let (Some(pattern), Some(second)) = (words.next(), words.next()) else { continue };
        let (kind, context) = match words.next() {
            Some(context) => (Some(second), context),
            None => (None, second),
        };
        if pattern.starts_with('#') || kind.is_some_and(|kind| kind != SOCKET) || !begins(pattern, path) {
            continue;
        }
        if Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(path)) {
            found = Some(context);
        }
    }
    found.filter(|context| *context != "<<none>>").map(str::to_owned)
}

/// False if the text before the first special character rules the path out: most lines of thousands.
fn begins(pattern: &str, path: &str) -> bool {
    let end = pattern.find(|c| ".^$?*+|[({\\".contains(c));
    let stem = match end {
        // The character before `?`, `*`, `{` is optional.
        Some(at) => pattern.get(..at.saturating_sub(1)).unwrap_or_default(),
        None => pattern,
    };
    path.starts_with(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "# comment
/.*\tsystem_u:object_r:default_t:s0
/run/.*\tsystem_u:object_r:var_run_t:s0
/run/.*\\.*pid\t<<none>>
/run/php(-[^/]+)?/.*\\.sock\t-s\tsystem_u:object_r:httpd_var_run_t:s0
/run/php/.*\t-d\tsystem_u:object_r:dir_t:s0
/run/colou?r\tsystem_u:object_r:colour_t:s0
/srv/broken(\tsystem_u:object_r:x_t:s0
";

    #[test]
    fn the_last_line_that_fits_decides() {
        let kind =
            |path: &str| of_socket(path, LINES).map(|c| crate::selinux::type_of(&c).unwrap().to_owned());
        assert_eq!(kind("/run/php/a.sock").as_deref(), Some("httpd_var_run_t"));
        assert_eq!(kind("/run/php-8.2/a.sock").as_deref(), Some("httpd_var_run_t"));
        assert_eq!(kind("/run/phpx/a.sock").as_deref(), Some("var_run_t"));
        assert_eq!(kind("/run/color").as_deref(), Some("colour_t"));
        assert_eq!(kind("/run/x.pid"), None);
        assert_eq!(kind("/srv/broken").as_deref(), Some("default_t"));
        assert_eq!(kind("relative"), None);
    }

    #[test]
    fn paths_have_aliases() {
        let subs = "/var/run /run\n#/x /y\n/lib64 /lib\n";
        assert_eq!(substitute("/var/run/a.sock", subs), "/run/a.sock");
        assert_eq!(substitute("/var/runner", subs), "/var/runner");
        assert_eq!(substitute("/lib64", subs), "/lib");
    }
}
