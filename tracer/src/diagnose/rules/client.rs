//! `client-aborted`: nginx gave the attempt up because its client had left, before its own timer.
//!
//! Look-alike: nginx's connect timer, which closes the same way; the time decides, and the client's socket.

use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Verdict, words},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let how = case.gave_up()?;
    let (proof, text) = match (how, case.client_gone) {
        (GaveUp::ClientGone, Some((client, reset))) => (
            // Without its length the attempt may have met the timer at the same time.
            case.connect_timeouts().next().is_some() && a.duration_us().is_some(),
            format!(
                "client {client} had {} and nginx closed its connection in the same moment",
                if reset { "reset the connection" } else { "closed" }
            ),
        ),
        // Where something here kept the handshake from succeeding, that is the better answer.
        (GaveUp::Early, _) if a.drop.is_none() && a.overflow.is_none() && case.client_saw.is_none() => {
            (false, "nginx closed the attempt without an error from the network".to_owned())
        }
        _ => return None,
    };
    let timer = case.connect_timeouts().min().map(|ms| {
        format!(
            "{}, before its connect timeout of {}",
            words::after(case),
            words::duration(ms.saturating_mul(1000))
        )
    });
    let state = match (&a.drop, a.overflow) {
        (Some(_), _) => words::drop_text(case),
        (None, Some(o)) => Some(format!("the upstream's accept queue was full ({} waiting)", o.queued)),
        (None, None) => Some(format!("{} sent, no answer by then", words::syns(case.syns()))),
    };
    Some(
        Verdict::graded(
            Cause::ClientAborted,
            proof,
            format!("the client left while nginx was still connecting to {}", a.remote),
            "nginx gave up for a reason that why502 did not see (the end of a stream in HTTP/2, a reload)",
        )
        .because("client", text)
        .because_if("time", timer)
        .because_if("syn", state)
        .fix("nothing to mend in the upstream by this alone; if it happens often, see why the connect takes longer than clients wait"),
    )
}
