//! How long what is away is waited for: a controller that restarts, a host whose ssh broke off.
//!
//! In: something that is asked or done, and may be asked or done twice. Out: its answer, or its last failure once a bound is passed.
//! What is refused is refused at once: only silence is waited for, and, after a break-off, whoever is at work there still.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use super::trouble::{Step, Trouble};
use super::{Job, progress};
use crate::client::explain::Failed;

/// How long a controller that does not answer is asked again.
///
/// Its restart takes seconds, that of its host a minute. Half of it takes an upgrade back for the latter; double it, and a controller
/// that is gone holds a terminal for three minutes.
const AWAY_WITHIN: Duration = Duration::from_secs(90);
/// How long after a controller is back its agents may take to be, too: their storm is spread over a minute.
const RETURN_WITHIN: Duration = Duration::from_secs(90);
/// How often a controller is asked.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long an agent that was started may take until the controller has it.
///
/// Its first tries are within seconds. Half of it fails on a host that is just booting; double it, and a wrong address holds the
/// whole deploy for a minute.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// How often a host whose ssh broke off is tried to be reached.
const REACH_EVERY: Duration = Duration::from_secs(3);

/// Whether a controller may be back in a moment.
fn is_away(failed: &Failed) -> bool {
    matches!(
        failed.code,
        None | Some(Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded)
    )
}

/// Asks a controller, again while it is away.
///
/// # Errors
///
/// It refuses, or is away for too long: the last failure.
pub(super) async fn while_away<T>(mut ask: impl AsyncFnMut() -> Result<T, Failed>) -> Result<T, Failed> {
    let end = Instant::now() + AWAY_WITHIN;
    loop {
        match ask().await {
            Err(failed) if is_away(&failed) && Instant::now() < end => sleep(ASK_EVERY).await,
            answer => return answer,
        }
    }
}

/// Asks until there is an answer, for [`JOIN_WITHIN`]; when the controller is away meanwhile, until its agents are back.
///
/// # Errors
///
/// There was none for so long.
pub(super) async fn until<T>(mut ask: impl AsyncFnMut() -> Result<Option<T>, Failed>) -> Result<T, Duration> {
    let began = Instant::now();
    let last = began + JOIN_WITHIN + AWAY_WITHIN + RETURN_WITHIN;
    let mut end = began + JOIN_WITHIN;
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Err(failed) if is_away(&failed) => end = last.min(Instant::now() + RETURN_WITHIN),
            Ok(None) | Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(began.elapsed());
        }
        sleep(ASK_EVERY).await;
    }
}

/// Does something on a host that may be done twice, again when ssh breaks off under it; for `within` at most. `begun`: what it ends or
/// undoes was begun before, so a host that is not reached at the first try is waited for, too.
///
/// # Errors
///
/// What the host says, which counts at every try ([`Trouble::late`] at another than the first), or, when it is not reached any more,
/// how ssh broke off: then what became of it is not known ([`Trouble::broke_off`]).
pub(super) async fn insist<T>(
    job: &Job,
    within: Duration,
    begun: bool,
    mut what: impl AsyncFnMut() -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let mut end = begun.then(|| Instant::now() + within);
    loop {
        let trouble = match what().await {
            Ok(done) => return Ok(done),
            Err(trouble) => trouble,
        };
        // A host that is not back, or where the first try is at work still, has not answered; whatever else is said is an answer.
        let no_answer = trouble.step == Step::Connect || trouble.busy;
        let again = trouble.broke_off || (end.is_some() && no_answer);
        if !again {
            return Err(match end {
                None => trouble,
                Some(_) => trouble.told_late(),
            });
        }
        if Instant::now() >= *end.get_or_insert_with(|| Instant::now() + within) {
            return Err(trouble.broken_off());
        }
        progress(job, format_args!("tries again: {trouble}"));
        sleep(REACH_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use flowtilla_proto::hosts::Target;
    use tonic::Status;

    use super::*;
    use crate::client::explain::Stage;

    const WITHIN: Duration = Duration::from_secs(90);

    fn failed(code: Code) -> Failed {
        Failed::status(Stage::Call, &Status::new(code, "x"))
    }

    /// Answers with these in turns; the last one stays.
    fn turns<T: Clone>(answers: Vec<T>) -> impl AsyncFnMut() -> T {
        let mut next = 0;
        async move || {
            let answer = answers[next.min(answers.len() - 1)].clone();
            next += 1;
            answer
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_restarts_is_waited_for_and_one_that_refuses_is_not() {
        let away = Err(failed(Code::Unavailable));
        let mut answers = vec![away.clone(); 100];
        answers.push(Ok(7));
        assert_eq!(while_away(turns(answers)).await, Ok(7));
        let began = Instant::now();
        let refused = while_away(turns(vec![Err::<u8, _>(failed(Code::Unimplemented)), Ok(7)])).await;
        assert_eq!(refused.expect_err("refused").code, Some(Code::Unimplemented));
        assert_eq!(began.elapsed(), Duration::ZERO);
        let gone = while_away(turns(vec![Err::<u8, _>(failed(Code::Unavailable))])).await;
        assert_eq!(gone.expect_err("gone").code, Some(Code::Unavailable));
        assert!(began.elapsed() >= AWAY_WITHIN && began.elapsed() < AWAY_WITHIN * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_has_longer_to_come_when_the_controller_was_away() {
        let waited = until(turns(vec![Ok(None::<u8>)]))
            .await
            .expect_err("nobody comes");
        assert!(waited >= JOIN_WITHIN && waited < JOIN_WITHIN * 2, "{waited:?}");
        // Away for 20 s, and the agent a minute later.
        let mut answers = vec![Err(failed(Code::Unavailable)); 40];
        answers.extend(vec![Ok(None); 120]);
        answers.push(Ok(Some(7)));
        assert_eq!(until(turns(answers)).await, Ok(7));
        let waited = until(turns(vec![Err::<Option<u8>, _>(failed(Code::Unavailable))]))
            .await
            .expect_err("it is gone");
        let most = JOIN_WITHIN + AWAY_WITHIN + RETURN_WITHIN;
        assert!(waited >= most && waited < most * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_whose_ssh_broke_off_is_tried_again_and_its_own_word_is_taken() {
        let target = Target {
            user: None,
            host: "a".to_owned(),
            port: NonZeroU16::new(22),
        };
        let job = super::super::tests::job_of(target);
        let trouble = |step| Trouble::new(step, "why", "remedy");
        let broke = Err::<u8, _>(trouble(Step::Connect).broken_off());
        let unreached = Err(trouble(Step::Connect));
        let mut at_work = trouble(Step::Install);
        at_work.busy = true;
        let busy = Err(at_work);
        let again = vec![broke.clone(), unreached.clone(), busy.clone(), Ok(7)];
        assert_eq!(insist(&job, WITHIN, false, turns(again)).await, Ok(7));
        // Not reached at the first try: nothing was begun.
        let told = insist(&job, WITHIN, false, turns(vec![unreached.clone(), Ok(7)]))
            .await
            .expect_err("told");
        assert!(!told.broke_off && !told.late);
        let told = insist(&job, WITHIN, false, turns(vec![busy.clone(), Ok(7)]))
            .await
            .expect_err("somebody else is at work");
        assert!(!told.broke_off && !told.late);
        for step in [Step::Start, Step::Install, Step::Sudo, Step::Probe] {
            let refused = vec![broke.clone(), Err(trouble(step)), Ok(7)];
            let told = insist(&job, WITHIN, false, turns(refused))
                .await
                .expect_err("its word");
            assert!(!told.broke_off && told.late && told.step == step, "{told}");
        }
        let began = Instant::now();
        let told = insist(&job, WITHIN, false, turns(vec![broke, unreached]))
            .await
            .expect_err("it is gone");
        assert!(told.broke_off, "what became of it is not known");
        assert!(began.elapsed() >= WITHIN && began.elapsed() < WITHIN * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_is_brought_to_its_end_on_a_host_that_is_away_at_the_first_try_too() {
        let target = Target {
            user: None,
            host: "a".to_owned(),
            port: NonZeroU16::new(22),
        };
        let job = super::super::tests::job_of(target);
        let unreached = Err::<u8, _>(Trouble::new(Step::Connect, "why", "remedy"));
        let back = turns(vec![unreached.clone(), unreached.clone(), Ok(7)]);
        assert_eq!(insist(&job, WITHIN, true, back).await, Ok(7));
        let began = Instant::now();
        let told = insist(&job, WITHIN, true, turns(vec![unreached]))
            .await
            .expect_err("it is gone");
        assert!(told.broke_off, "what is there is not known");
        assert!(began.elapsed() >= WITHIN && began.elapsed() < WITHIN * 2);
        let said = Err::<u8, _>(Trouble::new(Step::Start, "why", "remedy"));
        let told = insist(&job, WITHIN, true, turns(vec![said, Ok(7)]))
            .await
            .expect_err("its own word");
        assert!(!told.broke_off);
    }
}
