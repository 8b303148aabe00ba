//! Promise: nobody gets in. Real controllers on loopback, real TLS, real certificates.

#[path = "identity/backup.rs"]
mod backup;
#[path = "identity/enrol.rs"]
mod enrol;
#[path = "identity/garbled.rs"]
mod garbled;
#[path = "identity/hostile.rs"]
mod hostile;
#[path = "identity/kill.rs"]
mod kill;
#[path = "identity/operators.rs"]
mod operators;
#[path = "identity/recover.rs"]
mod recover;
#[path = "identity/rotate.rs"]
mod rotate;
#[path = "identity/scene.rs"]
mod scene;
#[path = "identity/store.rs"]
mod store;
