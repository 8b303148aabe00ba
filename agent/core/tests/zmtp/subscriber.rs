//! A collector's side of ZMTP, written for the tests from RFC 37 and RFC 26, sharing no code with the peer under test.

use crypto_box::aead::AeadInPlace;
use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, Tag};
use flowtilla_agent_core::zmtp::{CurveKeys, Peer};

pub(crate) fn greeting(mechanism: &str, minor: u8) -> [u8; 64] {
    let mut out = [0; 64];
    out[0] = 0xff;
    out[9] = 0x7f;
    out[10] = 3;
    out[11] = minor;
    out[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    out
}

pub(crate) fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match u8::try_from(body.len()) {
        Ok(size) => out.extend([flags, size]),
        Err(_) => {
            out.push(flags | 2);
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    out.extend(body);
    out
}

fn named(name: &str, data: &[u8]) -> Vec<u8> {
    let mut body = vec![u8::try_from(name.len()).unwrap()];
    body.extend(name.as_bytes());
    body.extend(data);
    body
}

pub(crate) fn command(name: &str, data: &[u8]) -> Vec<u8> {
    frame(4, &named(name, data))
}

fn metadata(kind: &str) -> Vec<u8> {
    let mut out = named("Socket-Type", &u32::try_from(kind.len()).unwrap().to_be_bytes());
    out.extend(kind.as_bytes());
    out
}

pub(crate) fn ready(kind: &str) -> Vec<u8> {
    command("READY", &metadata(kind))
}

pub(crate) fn server_keys() -> SecretKey {
    SecretKey::from([3; 32])
}

pub(crate) fn keys_for(server: [u8; 32]) -> CurveKeys {
    CurveKeys {
        server,
        client_secret: [4; 32],
        ephemeral_secret: [5; 32],
        vouch_nonce: [6; 16],
    }
}

/// The server's side of CURVE.
pub(crate) struct CurveServer {
    session: Option<SalsaBox>,
    nonce: u64,
    peer_nonce: u64,
    pub(crate) client_metadata: Vec<u8>,
}

impl CurveServer {
    pub(crate) fn new() -> Self {
        Self {
            session: None,
            nonce: 0,
            peer_nonce: 0,
            client_metadata: Vec::new(),
        }
    }

    /// The whole handshake with a peer that knows the server's key.
    pub(crate) fn shake(&mut self, peer: &mut Peer) {
        let (server, ephemeral) = (server_keys(), SecretKey::from([8; 32]));
        peer.handle_input(&greeting("CURVE", 1)).unwrap();
        let sent: Vec<u8> = std::iter::from_fn(|| peer.poll_output()).flatten().collect();
        assert_eq!(sent[..64], greeting("CURVE", 1));
        let hello = &sent[66..];
        assert_eq!(
            (sent[64], hello.len(), &hello[..8]),
            (4, 200, &b"\x05HELLO\x01\0"[..])
        );
        let client_ephemeral = PublicKey::from_slice(&hello[80..112]).unwrap();
        let zeros = open(
            &SalsaBox::new(&client_ephemeral, &server),
            &nonce(b"CurveZMQHELLO---", &hello[112..120]),
            &hello[120..],
        );
        assert_eq!(zeros, [0; 64]);

        let mut welcome = ephemeral.public_key().to_bytes().to_vec();
        welcome.extend([0xc0; 96]);
        let mut data = vec![1; 16];
        data.extend(seal(
            &SalsaBox::new(&client_ephemeral, &server),
            &nonce(b"WELCOME-", &[1; 16]),
            &welcome,
        ));
        peer.handle_input(&command("WELCOME", &data)).unwrap();

        let sent = peer.poll_output().unwrap();
        let (_, initiate) = split_frame(&sent);
        assert_eq!(&initiate[..9], b"\x08INITIATE");
        assert_eq!(initiate[9..105], [0xc0; 96], "the cookie comes back");
        let session = SalsaBox::new(&client_ephemeral, &ephemeral);
        let plain = open(
            &session,
            &nonce(b"CurveZMQINITIATE", &initiate[105..113]),
            &initiate[113..],
        );
        let client = PublicKey::from_slice(&plain[..32]).unwrap();
        assert_eq!(client, SecretKey::from([4; 32]).public_key());
        let vouched = open(
            &SalsaBox::new(&client, &ephemeral),
            &nonce(b"VOUCH---", &plain[32..48]),
            &plain[48..128],
        );
        assert_eq!(vouched[..32], client_ephemeral.to_bytes());
        assert_eq!(vouched[32..], server.public_key().to_bytes());
        self.client_metadata = plain[128..].to_vec();
        self.peer_nonce = 2;

        self.nonce = 1;
        let mut data = self.nonce.to_be_bytes().to_vec();
        data.extend(seal(
            &session,
            &nonce(b"CurveZMQREADY---", &self.nonce.to_be_bytes()),
            &metadata("SUB"),
        ));
        self.session = Some(session);
        peer.handle_input(&command("READY", &data)).unwrap();
    }

    /// One MESSAGE frame to the peer. Flags: 1 more, 2 command.
    pub(crate) fn seal(&mut self, flags: u8, body: &[u8]) -> Vec<u8> {
        self.nonce += 1;
        let mut plain = vec![flags];
        plain.extend(body);
        let nonce_octets = self.nonce.to_be_bytes();
        let mut data = nonce_octets.to_vec();
        let session = self.session.as_ref().unwrap();
        data.extend(seal(session, &nonce(b"CurveZMQMESSAGES", &nonce_octets), &plain));
        frame(0, &named("MESSAGE", &data))
    }

    /// All frames in `sent`, with their flags.
    pub(crate) fn open_all(&mut self, mut sent: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        while !sent.is_empty() {
            let (taken, body) = split_frame(sent);
            assert_eq!(sent[0] & !2, 0, "MESSAGE travels without flags");
            assert_eq!(&body[..8], b"\x07MESSAGE");
            let number = u64::from_be_bytes(body[8..16].try_into().unwrap());
            assert_eq!(number, self.peer_nonce + 1, "nonces grow by one");
            self.peer_nonce = number;
            let session = self.session.as_ref().unwrap();
            let plain = open(session, &nonce(b"CurveZMQMESSAGEC", &body[8..16]), &body[16..]);
            out.push((plain[0], plain[1..].to_vec()));
            sent = &sent[taken..];
        }
        out
    }
}

/// Octets of the first frame, and its body.
fn split_frame(sent: &[u8]) -> (usize, &[u8]) {
    let (head, size) = if sent[0] & 2 == 0 {
        (2, usize::from(sent[1]))
    } else {
        let size = u64::from_be_bytes(sent[1..9].try_into().unwrap());
        (9, usize::try_from(size).unwrap())
    };
    (head + size, &sent[head..head + size])
}

fn nonce(prefix: &[u8], rest: &[u8]) -> Nonce {
    *Nonce::from_slice(&[prefix, rest].concat())
}

fn seal(boxed: &SalsaBox, nonce: &Nonce, plain: &[u8]) -> Vec<u8> {
    let mut text = plain.to_vec();
    let tag = boxed.encrypt_in_place_detached(nonce, b"", &mut text).unwrap();
    [tag.to_vec(), text].concat()
}

fn open(boxed: &SalsaBox, nonce: &Nonce, data: &[u8]) -> Vec<u8> {
    let mut text = data[16..].to_vec();
    let tag = Tag::from_slice(&data[..16]);
    boxed
        .decrypt_in_place_detached(nonce, b"", &mut text, tag)
        .expect("the box opens");
    text
}
