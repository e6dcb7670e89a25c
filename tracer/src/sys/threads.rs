//! What the threads of a process do, by /proc/PID/task.

use std::fs;

use super::proc;

/// State letters of a process's threads (proc(5)), at most [`MOST`], and where the first one that waits does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Threads {
    /// A letter a thread: R, S, D, T, Z …
    pub states: Vec<u8>,
    /// Kernel function that it waits in; `None` if no thread waits, or the kernel does not tell.
    pub waits_in: Option<String>,
}

/// Threads that are looked at.
pub const MOST: usize = 64;

/// Looks at a process; nothing if it is gone.
pub fn of(pid: u32) -> Threads {
    let mut found = Threads::default();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return found;
    };
    for task in tasks.flatten().take(MOST) {
        let path = task.path();
        let Ok(stat) = proc::read_up_to(path.join("stat"), 1024) else { continue };
        let Some(stat) = proc::parse_stat(&stat) else { continue };
        found.states.push(stat.state);
        if found.waits_in.is_none() && matches!(stat.state, b'S' | b'D') {
            found.waits_in = proc::read_up_to(path.join("wchan"), 128).ok().and_then(|bytes| {
                let name = proc::printable(&bytes);
                // "0": not told.
                (!name.is_empty() && name != "0").then_some(name)
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_threads_are_seen() {
        let found = of(std::process::id());
        assert!(found.states.contains(&b'R'), "{found:?}");
        assert_eq!(of(u32::MAX), Threads::default());
    }
}
