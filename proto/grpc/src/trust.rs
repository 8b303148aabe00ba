//! Whom a caller believes to be its controller.
//!
//! Two ways. With a bundle: the chain ends in one of its roots. With a pin (enrolment, nothing else is known yet): the chain
//! ends in a root that the controller shows itself and whose public key has the pinned hash. Roots are what signs SVIDs: of an
//! operator's own CA the controller's intermediate, and not what signed that. In both the controller's SVID
//! holds the DNS name [`CONTROLLER_NAME`], which the CA gives to nobody else, whatever address it is reached at; and TLS is
//! 1.3, without resumption, so that a renewed or revoked identity counts from the next connection on.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::svid;

/// DNS name in a controller's SVID. Reserved names never resolve. Source: RFC 6761.
pub const CONTROLLER_NAME: &str = "controller.flowtilla.internal";

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("a root of the trust bundle cannot be read")]
pub struct BundleError(#[source] Error);

/// The cryptography of all connections.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Roots as the TLS library wants them.
///
/// # Errors
///
/// [`BundleError`].
pub fn roots(bundle: &[CertificateDer<'static>]) -> Result<RootCertStore, BundleError> {
    let mut roots = RootCertStore::empty();
    for root in bundle {
        roots.add(root.clone()).map_err(BundleError)?;
    }
    Ok(roots)
}

/// TLS to a controller whose chain ends in the bundle. `identity`: the caller's SVID, asked for at each connection; `None`:
/// the caller shows none.
///
/// # Errors
///
/// [`BundleError`].
pub fn with_bundle(
    bundle: &[CertificateDer<'static>],
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, BundleError> {
    let builder = builder().with_root_certificates(roots(bundle)?);
    Ok(finish(match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    }))
}

/// TLS to a controller of which only the hash of its root's public key is known. The caller shows no SVID.
#[must_use]
pub fn with_pin(pin: [u8; 32]) -> ClientConfig {
    let verifier = Arc::new(PinnedRoot {
        pin,
        provider: provider(),
    });
    finish(
        builder()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth(),
    )
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Believes the root that has the pinned key, when the controller shows it, and checks the chain against it as usual.
#[derive(Debug)]
struct PinnedRoot {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|shown| svid::pin_of(shown) == Some(self.pin))
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
