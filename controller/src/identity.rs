//! Who is who: the authority that signs SVIDs, certificate requests, TLS, and the rows that identities are kept in.

pub mod ca;
pub mod csr;
pub mod tls;

pub(crate) mod root;
pub(crate) mod rows;
