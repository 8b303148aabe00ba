//! Tells when a part of the agent has panicked.
//!
//! A thread or task that ends so leaves the others at work: the agent would go on, say that it is well, and observe or send nothing.
//! Whoever runs it ends it then, and whatever started it starts it anew.

use tokio_util::sync::CancellationToken;

/// Goes into a thread or task, and out with it. Cancels the token when that is by a panic.
#[derive(Debug)]
pub(crate) struct Watched(pub(crate) CancellationToken);

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_thread_or_a_task_is_told_and_an_end_is_not() {
        let token = CancellationToken::new();
        for panics in [false, true] {
            let watched = Watched(token.clone());
            let thread = std::thread::spawn(move || {
                let _watched = watched;
                assert!(!panics, "as it is told");
            });
            assert_eq!(thread.join().is_err(), panics);
            assert_eq!(token.is_cancelled(), panics);
        }
        let token = CancellationToken::new();
        for panics in [false, true] {
            let watched = Watched(token.clone());
            let task = tokio::spawn(async move {
                let _watched = watched;
                tokio::task::yield_now().await;
                assert!(!panics, "as it is told");
            });
            assert_eq!(task.await.is_err(), panics);
            assert_eq!(token.is_cancelled(), panics);
        }
    }
}
