//! Who this host's agent is, and whether its controller and its collectors are in reach. Reads what the agent keeps, and writes
//! nothing; shows neither key nor token.

use std::io;
use std::path::Path;
use std::sync::Arc;

use flowtilla_agent_core::session::Assignment;
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::causes::chain;
use flowtilla_grpc::channel::{self, Address};
use flowtilla_grpc::{svid, trust};
use flowtilla_proto::token::{JoinToken, TOKEN_OCTETS_MAX};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Finding, read_regular};
use crate::{clock, export, held};

/// Octets of one of the identity's files at most.
const FILE_OCTETS_MAX: u64 = 256 << 10;
/// Octets of what is held at most.
const HELD_OCTETS_MAX: u64 = 2 << 20;
/// Where a join token is looked for, below the state.
const TOKEN: &str = "join-token";

/// What the agent keeps of its identity.
struct Kept {
    svid: svid::SvidFacts,
    bundle: Vec<CertificateDer<'static>>,
}

pub(super) async fn examine(state: &Path, controller: Option<&Address>) -> Vec<Finding> {
    let kept = kept(state);
    let token = token(state);
    let mut findings = vec![identity(state, &kept, token.is_some(), clock::wall_now())];
    findings.push(match controller {
        None => Finding::ok("controller", "none is named; agentctl up brings its own"),
        Some(address) => {
            let tls = match (&kept, token) {
                (Ok(Some(kept)), _) => trust::with_bundle(&kept.bundle, None).ok(),
                (_, Some(token)) => Some(trust::with_pin(token.pin.0)),
                _ => None,
            };
            reach(address, tls).await
        }
    });
    findings.extend(collectors(state).await);
    findings
}

/// `None`: there is none.
fn kept(state: &Path) -> io::Result<Option<Kept>> {
    let folder = state.join("identity/current");
    let certificates = |name: &str| {
        let Some(octets) = read_regular(&folder.join(name), FILE_OCTETS_MAX)? else {
            return Ok(Vec::new());
        };
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&octets).collect();
        all.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name} holds something else")))
    };
    let (shown, bundle) = (certificates("chain.pem")?, certificates("bundle.pem")?);
    let Some(first) = shown.first() else {
        return Ok(None);
    };
    let svid = svid::read(first).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some(Kept { svid, bundle }))
}

/// A join token that waits to be used.
fn token(state: &Path) -> Option<JoinToken> {
    let octets = read_regular(&state.join(TOKEN), TOKEN_OCTETS_MAX as u64).ok()??;
    JoinToken::parse(std::str::from_utf8(&octets).ok()?.trim()).ok()
}

fn identity(state: &Path, kept: &io::Result<Option<Kept>>, token: bool, now: WallTime) -> Finding {
    let check = "identity";
    let shown = state.display();
    match kept {
        Err(error) => Finding::warn(
            check,
            format!("what {shown} keeps cannot be read ({error})"),
            "run this as root; when it was, enrol anew: write a token to the agent's --token-file",
        ),
        Ok(None) if token => Finding::ok(
            check,
            format!("none in {shown}; a join token waits there to be used"),
        ),
        Ok(None) => Finding::ok(check, format!("none in {shown}: no agent was enrolled here")),
        Ok(Some(kept)) => {
            let now = i64::try_from(now.seconds()).unwrap_or(i64::MAX);
            let id = &kept.svid.id;
            let hours = |seconds: i64| format!("{} h {} min", seconds / 3600, seconds % 3600 / 60);
            if now < kept.svid.not_before {
                let what = format!(
                    "{id} counts only in {}: this clock is behind",
                    hours(kept.svid.not_before - now)
                );
                return Finding::warn(check, what, "set the clock");
            }
            match kept.svid.not_after - now {
                left if left > 0 => Finding::ok(check, format!("{id}, for another {}", hours(left))),
                left => Finding::warn(
                    check,
                    format!("{id} has run out {} ago", hours(-left)),
                    "see that the agent runs and reaches its controller: it asks for the next one; after a week an operator runs \
                     agentctl approve",
                ),
            }
        }
    }
}

/// `tls`: what makes sure of the controller; `None`: nothing here can.
async fn reach(address: &Address, tls: Option<ClientConfig>) -> Finding {
    let check = "controller";
    let why_not = |error: &(dyn std::error::Error + 'static)| {
        Finding::warn(
            check,
            format!("{address}: {}", chain(error)),
            "see that it runs, that its port is open from here, and that its name is right; what is held stays in force meanwhile",
        )
    };
    let Some(tls) = tls else {
        let tried = tokio::time::timeout(
            channel::CONNECT_TIMEOUT,
            tokio::net::TcpStream::connect((address.host(), address.port())),
        );
        return match tried.await {
            Ok(Ok(_)) => Finding::ok(
                check,
                format!(
                    "{address} takes connections; who it is cannot be seen without an identity or a token"
                ),
            ),
            Ok(Err(error)) => why_not(&error),
            Err(error) => why_not(&error),
        };
    };
    match channel::who(address, Arc::new(tls)).await {
        Ok(id) => Finding::ok(check, format!("{address} is {id}")),
        Err(error) => why_not(&error),
    }
}

/// Those of the policy in force, each connected to.
async fn collectors(state: &Path) -> Vec<Finding> {
    let check = "collectors";
    let path = state.join("held");
    let octets = match read_regular(&path, HELD_OCTETS_MAX) {
        Ok(Some(octets)) => octets,
        Ok(None) => return vec![Finding::ok(check, "no policy was ever in force here")],
        Err(error) => {
            let what = format!("{} cannot be read ({error})", path.display());
            return vec![Finding::warn(check, what, "run this as root")];
        }
    };
    let held = held::decode(&octets).map_err(str::to_owned);
    let held = held.and_then(|kept| Assignment::parse(&kept.content).map_err(|fault| fault.to_string()));
    let held = match held {
        Ok(held) => held,
        Err(why) => {
            let what = format!("{} is damaged ({why})", path.display());
            return vec![Finding::warn(
                check,
                what,
                "restart the agent: its controller tells it anew",
            )];
        }
    };
    let mut findings = Vec::new();
    for collector in held.wanted.collectors() {
        let shown = format!("{} at {}", collector.name.as_str(), collector.endpoint);
        findings.push(match export::reach(&collector.endpoint).await {
            Ok(()) => Finding::ok(check, format!("{shown} takes connections")),
            Err(why) => Finding::warn(
                check,
                format!("{shown}: {why}"),
                "see that it runs and listens there (ntopng: -i 'tcp://*:PORTc'); records wait on disk meanwhile",
            ),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, "the policy in force names none"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[tokio::test]
    async fn a_controller_that_is_not_there_is_told_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let address = Address::parse(&address.to_string()).expect("an address");
        let found = reach(&address, None).await;
        assert_eq!(found.verdict, Verdict::Ok, "{}", found.what);
        // One that is bound and never listens: nobody else takes its port.
        let silent = tokio::net::TcpSocket::new_v4().expect("a socket");
        silent.bind(([127, 0, 0, 1], 0).into()).expect("bound");
        let address = silent.local_addr().expect("bound");
        let address = Address::parse(&address.to_string()).expect("an address");
        let found = reach(&address, None).await;
        assert_eq!(found.verdict, Verdict::Warn, "{}", found.what);
        assert!(found.what.contains("refused"), "{}", found.what);
    }

    #[tokio::test]
    async fn a_host_without_an_agent_has_nothing_to_mend() {
        let folder = tempfile::tempdir().expect("a directory");
        for finding in examine(folder.path(), None).await {
            assert_eq!(finding.verdict, Verdict::Ok, "{}", finding.what);
        }
        std::fs::create_dir_all(folder.path().join("identity/current")).expect("made");
        std::fs::write(folder.path().join("identity/current/chain.pem"), "no PEM").expect("written");
        std::fs::write(folder.path().join("held"), "nothing").expect("written");
        let findings = examine(folder.path(), None).await;
        assert!(findings[0].what.starts_with("none in"), "{}", findings[0].what);
        assert!(findings[2].what.contains("is damaged"), "{}", findings[2].what);
    }
}
