//! Keeps an operator's identity: renews it past half of its life, and recovers it when it has run out.
//!
//! In: the context's directory. Out: the identity that counts, and a channel that shows one that does. One command at a time does
//! this in a directory; of many that find the SVID due at once the first asks, and the others read what it has stored. If each asked,
//! the last one to store might have an SVID that is not among the few that the controller gives an identity back for.
//! The directory itself is locked, so nothing is left behind in it. Where that cannot be done (some network file systems), or it
//! cannot be written, what was asked is not held up: an SVID that counts is used as it is, one that was recovered is used and not
//! kept, and stderr says so. What could not be kept is not asked for, so that no command leaves SVIDs behind at the controller.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::trust;
use flowtilla_proto::wire::enrol::{RecoverRequest, RenewRequest};
use tonic::transport::Channel;

use super::explain::{Failed, Stage};
use super::identity::{Identity, Key};
use super::{answered, channel};
use crate::exit::say;
use crate::output::day_and_clock;
use crate::view::moment;

/// How often a directory is looked at that another command has locked, and how many times.
///
/// Together a little longer than [`super::CALL_TIMEOUT`], within which the other one has its answer. Half of it asks beside a slow
/// one; double it, and one that hangs holds up all others for as long.
const TURN_LOOK: Duration = Duration::from_millis(50);
const TURN_LOOKS: u32 = 700;

/// The identity of a directory, renewed or recovered when it is time, and a channel with it.
///
/// # Errors
///
/// There is none, or no controller that accepts it.
pub(super) async fn keep(
    address: &Address,
    directory: &Path,
    now: WallTime,
) -> anyhow::Result<(Identity, Channel)> {
    let found = Identity::load(directory)?;
    let (mut kept, _turn) = match found.is_due(now) {
        false => (found, None),
        true => {
            let turn = turn(directory).await;
            // Another command may have done it meanwhile.
            (Identity::load(directory)?, turn)
        }
    };
    if kept.is_over(now) {
        let next = recover(address, &kept).await?;
        if let Err(error) = next.store(directory) {
            say(format_args!(
                "{error:#}; the next command has to recover it again"
            ));
        }
        let channel = channel(address, &next).await?;
        return Ok((next, channel));
    }
    let channel = channel(address, &kept).await?;
    if kept.is_due(now) {
        match renewed(&channel, directory).await {
            Ok(next) => kept = next,
            Err(error) => {
                let until = moment(kept.not_after().saturating_mul(1_000)).map(day_and_clock);
                let until = until.unwrap_or_default();
                say(format_args!(
                    "the SVID was not renewed, and counts until {until} UTC: {error:#}"
                ));
            }
        }
    }
    Ok((kept, channel))
}

/// The next identity, kept.
async fn renewed(channel: &Channel, directory: &Path) -> anyhow::Result<Identity> {
    Identity::may_be_kept(directory)?;
    let next = renew(channel.clone()).await?;
    next.store(directory)?;
    Ok(next)
}

/// Waits until no other command is at it. `None`: without a lock.
async fn turn(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    for _ in 0..TURN_LOOKS {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(TURN_LOOK).await,
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

async fn renew(channel: Channel) -> anyhow::Result<Identity> {
    let key = Key::new();
    let request = RenewRequest { csr: key.request() };
    let answer = answered(Stage::Renew, EnrolmentClient::new(channel).renew(request)).await?;
    Identity::of_answer(key, answer)
}

async fn recover(address: &Address, expired: &Identity) -> anyhow::Result<Identity> {
    let tls = trust::with_bundle(expired.bundle(), None)?;
    let channel = connect(address, Arc::new(tls))
        .await
        .map_err(|error| Failed::connect(Stage::Renew, &error))?;
    let key = expired.key()?;
    let request = RecoverRequest {
        svid: expired.svid().to_vec(),
        csr: key.request(),
    };
    let answer = answered(Stage::Renew, EnrolmentClient::new(channel).recover(request)).await?;
    Identity::of_answer(key, answer)
}
