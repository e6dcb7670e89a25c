//! What `why502 explain NAME` says of a finding that is no cause of a failed request: what breaks, why, what to do.

/// The page of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// What breaks because of it.
    pub breaks: &'static str,
    /// Why.
    pub why: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// Sections that begin with `# NAME`, each of three lines.
const TEXT: &str = include_str!("pages.md");

/// The page of a finding's name; None for causes, which have pages of their own, and for names that do not exist.
#[must_use]
pub fn page(name: &str) -> Option<Page> {
    let mut lines = TEXT.lines().skip_while(|line| line.strip_prefix("# ") != Some(name)).skip(1);
    Some(Page { breaks: lines.next()?, why: lines.next()?, fix: lines.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, diagnose::Cause};

    #[test]
    fn every_name_of_the_list_is_explained_and_no_other() {
        for (name, _) in check::names() {
            let is_cause = name.parse::<Cause>().is_ok();
            assert_eq!(page(name).is_some(), !is_cause, "{name}");
            if let Some(Page { breaks, why, fix }) = page(name) {
                assert!([breaks, why].iter().all(|text| text.len() > 20) && !fix.is_empty(), "{name}");
            }
        }
        let heads = TEXT.lines().filter_map(|line| line.strip_prefix("# "));
        for head in heads {
            assert!(check::names().any(|(name, _)| name == head), "{head} is no finding");
        }
        assert_eq!(page("nonsense"), None);
    }
}
