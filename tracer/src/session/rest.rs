//! When the loop may sleep without a clock.
//!
//! Asked for it, the kernel side wakes the reader with the next record, and with that one only: it takes the request back
//! as it does (`wakeup` in the kernel's `emit.rs`). The wake-up reaches nobody if the reader has taken that record in the
//! meantime, for then the ring is empty when the kernel looks whether a reader's wait is over (`ringbuf_map_poll_kern`,
//! kernel/bpf/ringbuf.c). So the loop sleeps only if nothing came between the request and a later round: whatever comes
//! after that is still in the ring, and wakes. The time between the two also covers a record that was about to be
//! submitted as the request was made.

/// Rounds without work before sleeping without a clock.
const QUIET_ROUNDS: u32 = 20;

/// What to do at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Come back with the next tick.
    Wait,
    /// Ask for a wake-up, and come back with the next tick.
    Ask,
    /// Sleep until woken.
    Sleep,
}

/// Counts quiet rounds.
#[derive(Debug, Default)]
pub(super) struct Rest {
    quiet: u32,
    /// A wake-up was asked for, and no record was read since.
    asked: bool,
}

impl Rest {
    /// A record was read.
    pub(super) fn read(&mut self) {
        self.asked = false;
    }

    /// The end of a round without anything left to do; `idle`: it did nothing.
    pub(super) fn next(&mut self, idle: bool) -> Step {
        if std::mem::take(&mut self.asked) && idle {
            self.quiet = 0;
            return Step::Sleep;
        }
        self.quiet = if idle { self.quiet + 1 } else { 0 };
        if self.quiet < QUIET_ROUNDS {
            return Step::Wait;
        }
        self.asked = true;
        Step::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until_asked(rest: &mut Rest) {
        let rounds =
            std::iter::repeat_with(|| rest.next(true)).take_while(|step| *step == Step::Wait).count();
        assert!(rounds < 100);
    }

    #[test]
    fn sleeps_a_round_after_asking() {
        let mut rest = Rest::default();
        until_asked(&mut rest);
        assert_eq!(rest.next(true), Step::Sleep);
        // Woken, it looks around for a while.
        assert_eq!(rest.next(true), Step::Wait);
    }

    #[test]
    fn a_record_that_was_read_may_have_been_the_one_that_wakes() {
        let mut rest = Rest::default();
        until_asked(&mut rest);
        rest.read();
        assert_eq!(rest.next(true), Step::Ask);
        assert_eq!(rest.next(true), Step::Sleep);
    }

    #[test]
    fn work_begins_the_count_anew() {
        let mut rest = Rest::default();
        until_asked(&mut rest);
        rest.read();
        assert_eq!(rest.next(false), Step::Wait);
        for _ in 0..10 {
            assert_eq!(rest.next(true), Step::Wait);
        }
    }
}
