//! Which of why502's hooks this kernel lacks: what a tier may leave unexplained hangs on them.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Names of hooks, as `why502 doctor` lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) there: BTreeSet<String>,
    pub(crate) missing: BTreeSet<String>,
}

impl Hooks {
    /// Asks `why502 doctor` what this tier has here.
    pub(crate) fn ask(program: &Path, tier: &str) -> Result<Self> {
        let output = Command::new(program)
            .args(["doctor", "--tier", tier])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "why502 doctor --tier {tier}: {}\n{stderr}", output.status);
        let hooks = read(&String::from_utf8_lossy(&output.stdout));
        ensure!(!hooks.there.is_empty(), "why502 doctor --tier {tier} names no hook");
        Ok(hooks)
    }

    /// Whether there is a hook of this name, attached or not.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.there.contains(name) || self.missing.contains(name)
    }
}

/// Reads what `why502 doctor` prints: `ok NAME`, `MISSING NAME`, `- NAME not in the tracepoint tier`, `- NAME not needed here`.
fn read(text: &str) -> Hooks {
    let mut hooks = Hooks::default();
    for line in text.lines().take_while(|line| !line.starts_with("uprobes")) {
        let mut words = line.split_whitespace();
        let (Some(state), Some(name)) = (words.next(), words.next()) else { continue };
        let rest: Vec<&str> = words.collect();
        match state {
            "ok" => hooks.there.insert(name.to_owned()),
            "MISSING" => hooks.missing.insert(name.to_owned()),
            "-" if rest.starts_with(&["not", "in"]) => hooks.missing.insert(name.to_owned()),
            "-" => hooks.there.insert(name.to_owned()),
            _ => continue,
        };
    }
    hooks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_doctor_says() {
        let text = "kernel     6.1.0\ntier       tracepoint\n\n  ok       tcp-state         raw_tp:inet_sock_set_state\n           \
                    tells beginning\n  MISSING  answer            no tracepoint\n           lost  the request\n  \
                    -        lsm-connect       not in the tracepoint tier\n           lost  who\n  \
                    -        seccomp           not needed here: no filter\n\n3 of 4 hooks attached\n\nuprobes on /x\n  MISSING  odd\n";
        let hooks = read(text);
        assert_eq!(hooks.there.iter().collect::<Vec<_>>(), ["seccomp", "tcp-state"]);
        assert_eq!(hooks.missing.iter().collect::<Vec<_>>(), ["answer", "lsm-connect"]);
        assert!(hooks.knows("answer") && !hooks.knows("odd") && !hooks.knows("lost"));
    }
}
