//! Numbers of the elements in a flow record, as ntopng knows them without a template.
//!
//! Below 57,472: NetFlow v9 and IPFIX. From 57,472 on: ntop's own (private enterprise number 35,632).
//! Source: ntopng `ZMQParserInterface::parsePENZeroField`, `parsePENNtopField`.

/// Begin of ntop's own elements.
const NTOP: u16 = 57_472;

pub(super) const DELTA_OCTETS_FORWARD: u16 = 1;
pub(super) const DELTA_PACKETS_FORWARD: u16 = 2;
pub(super) const PROTOCOL: u16 = 4;
pub(super) const SOURCE_PORT: u16 = 7;
pub(super) const SOURCE_IPV4: u16 = 8;
pub(super) const DESTINATION_PORT: u16 = 11;
pub(super) const DESTINATION_IPV4: u16 = 12;
pub(super) const LAST_SWITCHED: u16 = 21;
pub(super) const FIRST_SWITCHED: u16 = 22;
pub(super) const DELTA_OCTETS_BACKWARD: u16 = 23;
pub(super) const DELTA_PACKETS_BACKWARD: u16 = 24;
pub(super) const SOURCE_IPV6: u16 = 27;
pub(super) const DESTINATION_IPV6: u16 = 28;
pub(super) const IP_VERSION: u16 = 60;
pub(super) const END_REASON: u16 = 136;
pub(super) const TOTAL_OCTETS_FORWARD: u16 = 231;
pub(super) const TOTAL_OCTETS_BACKWARD: u16 = 232;
pub(super) const TOTAL_PACKETS_FORWARD: u16 = 298;
pub(super) const TOTAL_PACKETS_BACKWARD: u16 = 299;

pub(super) const CLIENT_TCP_FLAGS: u16 = NTOP + 78;
pub(super) const SERVER_TCP_FLAGS: u16 = NTOP + 79;
pub(super) const CLIENT_RETRANSMITS: u16 = NTOP + 109;
pub(super) const SERVER_RETRANSMITS: u16 = NTOP + 110;
pub(super) const CLIENT_LATENCY_MS: u16 = NTOP + 123;
pub(super) const SERVER_LATENCY_MS: u16 = NTOP + 124;
pub(super) const PROBE_IPV4: u16 = NTOP + 471;

/// Name of the additional element that holds a record's identity.
pub(super) const RECORD_ID: &str = "FLOWTILLA_RECORD_ID";

/// Elements that say who is behind one end.
pub(super) struct OwnerElements {
    pub(super) pid: u16,
    pub(super) program: u16,
    pub(super) uid: u16,
    pub(super) user: u16,
    pub(super) command_line: u16,
    pub(super) container: u16,
    pub(super) parent_pid: u16,
    pub(super) parent_program: u16,
    pub(super) parent_uid: u16,
    pub(super) parent_user: u16,
}

/// The initiator's end.
pub(super) const CLIENT: OwnerElements = OwnerElements {
    pid: NTOP + 168,
    program: NTOP + 169,
    uid: NTOP + 425,
    user: NTOP + 372,
    command_line: NTOP + 556,
    container: NTOP + 558,
    parent_pid: NTOP + 373,
    parent_program: NTOP + 374,
    parent_uid: NTOP + 564,
    parent_user: NTOP + 565,
};

/// The responder's end.
pub(super) const SERVER: OwnerElements = OwnerElements {
    pid: NTOP + 375,
    program: NTOP + 376,
    uid: NTOP + 426,
    user: NTOP + 377,
    command_line: NTOP + 557,
    container: NTOP + 559,
    parent_pid: NTOP + 378,
    parent_program: NTOP + 379,
    parent_uid: NTOP + 567,
    parent_user: NTOP + 568,
};
