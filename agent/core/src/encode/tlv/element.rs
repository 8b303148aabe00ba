//! Numbers of the elements in a flow record, as ntopng knows them without a template.
//!
//! Below 57,472: NetFlow v9 and IPFIX. From 57,472 on: ntop's own (private enterprise number 35,632).
//! Source: ntopng `ZMQParserInterface::parsePENZeroField`, `parsePENNtopField`.

/// Begin of ntop's own elements.
const NTOP: u16 = 57_472;

/// IP octets, initiator to responder, since the last record.
pub const DELTA_OCTETS_FORWARD: u16 = 1;
/// Packets likewise.
pub const DELTA_PACKETS_FORWARD: u16 = 2;
/// IANA's protocol number.
pub const PROTOCOL: u16 = 4;
/// Port of the initiator.
pub const SOURCE_PORT: u16 = 7;
/// IPv4 address of the initiator, as text.
pub const SOURCE_IPV4: u16 = 8;
/// Port of the responder.
pub const DESTINATION_PORT: u16 = 11;
/// IPv4 address of the responder, as text.
pub const DESTINATION_IPV4: u16 = 12;
/// Newest packet, in seconds since the epoch.
pub const LAST_SWITCHED: u16 = 21;
/// First packet that the record covers, in seconds since the epoch.
pub const FIRST_SWITCHED: u16 = 22;
/// IP octets, responder to initiator, since the last record.
pub const DELTA_OCTETS_BACKWARD: u16 = 23;
/// Packets likewise.
pub const DELTA_PACKETS_BACKWARD: u16 = 24;
/// IPv6 address of the initiator, as text.
pub const SOURCE_IPV6: u16 = 27;
/// IPv6 address of the responder, as text.
pub const DESTINATION_IPV6: u16 = 28;
/// 4 or 6.
pub const IP_VERSION: u16 = 60;
/// Why the record was made, as text.
pub const END_REASON: u16 = 136;
/// IP octets, initiator to responder, since the flow began.
pub const TOTAL_OCTETS_FORWARD: u16 = 231;
/// IP octets, responder to initiator, since the flow began.
pub const TOTAL_OCTETS_BACKWARD: u16 = 232;
/// Packets, initiator to responder, since the flow began.
pub const TOTAL_PACKETS_FORWARD: u16 = 298;
/// Packets, responder to initiator, since the flow began.
pub const TOTAL_PACKETS_BACKWARD: u16 = 299;

/// TCP flags of the initiator.
pub const CLIENT_TCP_FLAGS: u16 = NTOP + 78;
/// TCP flags of the responder.
pub const SERVER_TCP_FLAGS: u16 = NTOP + 79;
/// Segments that the initiator sent again, since the last record.
pub const CLIENT_RETRANSMITS: u16 = NTOP + 109;
/// Segments that the responder sent again, since the last record.
pub const SERVER_RETRANSMITS: u16 = NTOP + 110;
/// Latency of the initiator's network, in ms.
pub const CLIENT_LATENCY_MS: u16 = NTOP + 123;
/// Latency of the responder's network, in ms.
pub const SERVER_LATENCY_MS: u16 = NTOP + 124;
/// IPv4 address of the agent, as text.
pub const PROBE_IPV4: u16 = NTOP + 471;

/// Name of the additional element that holds a record's identity.
pub const RECORD_ID: &str = "FLOWTILLA_RECORD_ID";

/// Elements that say who is behind one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerElements {
    /// Process id, > 0.
    pub pid: u16,
    /// The executable's path or the command's name.
    pub program: u16,
    /// User id.
    pub uid: u16,
    /// User name.
    pub user: u16,
    /// Command line.
    pub command_line: u16,
    /// Name or id of the container.
    pub container: u16,
    /// The parent's process id, > 0.
    pub parent_pid: u16,
    /// The parent's executable.
    pub parent_program: u16,
    /// The parent's user id.
    pub parent_uid: u16,
    /// The parent's user name.
    pub parent_user: u16,
}

/// The initiator's end.
pub const CLIENT: OwnerElements = OwnerElements {
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
pub const SERVER: OwnerElements = OwnerElements {
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
