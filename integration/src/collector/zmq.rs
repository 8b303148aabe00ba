//! The few functions of libzmq that a collector and a hand-made publisher need.
//!
//! Source: libzmq 4.3 `include/zmq.h`. Loaded at run time from Debian's package libzmq5.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use libloading::Library;

use super::library;

/// The loader name of Debian's libzmq.
pub const LIBRARY: &str = "libzmq.so.5";

/// Socket types.
pub mod kind {
    /// Publisher.
    pub const PUB: i32 = 1;
    /// Subscriber.
    pub const SUB: i32 = 2;
    /// Publisher that sees subscriptions.
    pub const XPUB: i32 = 9;
}

/// Socket options.
pub mod option {
    /// Octets: topic prefix to receive.
    pub const SUBSCRIBE: i32 = 6;
    /// int: messages that wait inside the library.
    pub const RCVHWM: i32 = 24;
    /// int: octets of the kernel's receive buffer.
    pub const RCVBUF: i32 = 12;
    /// int: ms to wait for what is unsent when closing.
    pub const LINGER: i32 = 17;
    /// int: longest wait of a receive, ms.
    pub const RCVTIMEO: i32 = 27;
    /// Text: endpoint bound last.
    pub const LAST_ENDPOINT: i32 = 32;
    /// int: 1 on.
    pub const TCP_KEEPALIVE: i32 = 34;
    /// int: probes.
    pub const TCP_KEEPALIVE_CNT: i32 = 35;
    /// int: seconds.
    pub const TCP_KEEPALIVE_IDLE: i32 = 36;
    /// int: seconds.
    pub const TCP_KEEPALIVE_INTVL: i32 = 37;
    /// int: 1 makes this end the CURVE server.
    pub const CURVE_SERVER: i32 = 47;
    /// Z85 text, 40 characters.
    pub const CURVE_PUBLICKEY: i32 = 48;
    /// Z85 text, 40 characters.
    pub const CURVE_SECRETKEY: i32 = 49;
    /// Z85 text, 40 characters.
    pub const CURVE_SERVERKEY: i32 = 50;
}

const SNDMORE: c_int = 2;
const MORE: c_int = 1;
const EAGAIN: c_int = 11;
const EINTR: c_int = 4;
/// `zmq_msg_t` of every 4.x.
const MESSAGE_OCTETS: usize = 64;

type Pointer = *mut c_void;

/// libzmq's functions, with the library they live in.
struct Functions {
    ctx_new: unsafe extern "C" fn() -> Pointer,
    ctx_term: unsafe extern "C" fn(Pointer) -> c_int,
    socket: unsafe extern "C" fn(Pointer, c_int) -> Pointer,
    close: unsafe extern "C" fn(Pointer) -> c_int,
    bind: unsafe extern "C" fn(Pointer, *const c_char) -> c_int,
    connect: unsafe extern "C" fn(Pointer, *const c_char) -> c_int,
    setsockopt: unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> c_int,
    getsockopt: unsafe extern "C" fn(Pointer, c_int, Pointer, *mut usize) -> c_int,
    send: unsafe extern "C" fn(Pointer, *const c_void, usize, c_int) -> c_int,
    msg_init: unsafe extern "C" fn(Pointer) -> c_int,
    msg_recv: unsafe extern "C" fn(Pointer, Pointer, c_int) -> c_int,
    msg_data: unsafe extern "C" fn(Pointer) -> Pointer,
    msg_size: unsafe extern "C" fn(Pointer) -> usize,
    msg_get: unsafe extern "C" fn(Pointer, c_int) -> c_int,
    msg_close: unsafe extern "C" fn(Pointer) -> c_int,
    errno: unsafe extern "C" fn() -> c_int,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    curve_keypair: unsafe extern "C" fn(*mut c_char, *mut c_char) -> c_int,
    _library: Library,
}

/// libzmq and one context of it.
pub struct ZmqContext {
    zmq: Arc<Functions>,
    context: Pointer,
}

/// A socket; used by the thread that made it.
pub struct Socket {
    zmq: Arc<Functions>,
    socket: Pointer,
}

/// A CURVE key pair, as Z85 text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// Given to peers.
    pub public: String,
    /// Kept.
    pub secret: String,
}

fn load() -> Result<Arc<Functions>> {
    let library = library::open(LIBRARY)?;
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the signature is the one of libzmq 4.3's zmq.h, and the library outlives the pointer.
            *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                .with_context(|| format!("find {} in {LIBRARY}", $name))?
        };
    }
    Ok(Arc::new(Functions {
        ctx_new: function!("zmq_ctx_new"),
        ctx_term: function!("zmq_ctx_term"),
        socket: function!("zmq_socket"),
        close: function!("zmq_close"),
        bind: function!("zmq_bind"),
        connect: function!("zmq_connect"),
        setsockopt: function!("zmq_setsockopt"),
        getsockopt: function!("zmq_getsockopt"),
        send: function!("zmq_send"),
        msg_init: function!("zmq_msg_init"),
        msg_recv: function!("zmq_msg_recv"),
        msg_data: function!("zmq_msg_data"),
        msg_size: function!("zmq_msg_size"),
        msg_get: function!("zmq_msg_get"),
        msg_close: function!("zmq_msg_close"),
        errno: function!("zmq_errno"),
        strerror: function!("zmq_strerror"),
        curve_keypair: function!("zmq_curve_keypair"),
        _library: library,
    }))
}

/// Makes a key pair.
///
/// # Errors
/// When libzmq is missing or was built without CURVE.
pub fn key_pair() -> Result<KeyPair> {
    let zmq = load()?;
    let (mut public, mut secret) = ([0_u8; 41], [0_u8; 41]);
    // SAFETY: both buffers have the 41 octets that the function writes.
    let rc = unsafe { (zmq.curve_keypair)(public.as_mut_ptr().cast(), secret.as_mut_ptr().cast()) };
    zmq.check(rc, "make a CURVE key pair")?;
    let text = |octets: &[u8]| String::from_utf8_lossy(&octets[..40]).into_owned();
    Ok(KeyPair {
        public: text(&public),
        secret: text(&secret),
    })
}

impl Functions {
    fn check(&self, rc: c_int, what: &str) -> Result<c_int> {
        if rc < 0 {
            // SAFETY: both functions take no pointers of ours; the text is static.
            let text = unsafe { CStr::from_ptr((self.strerror)((self.errno)())) };
            bail!("{what}: {}", text.to_string_lossy());
        }
        Ok(rc)
    }
}

impl ZmqContext {
    /// A new context. Its threads live in the namespace of the calling thread.
    ///
    /// # Errors
    /// When libzmq is missing or has no room.
    pub fn new() -> Result<Self> {
        let zmq = load()?;
        // SAFETY: takes nothing.
        let context = unsafe { (zmq.ctx_new)() };
        if context.is_null() {
            bail!("make a ZeroMQ context: no room");
        }
        Ok(Self { zmq, context })
    }

    /// A new socket of [`kind`].
    ///
    /// # Errors
    /// When there are too many.
    pub fn socket(&self, kind: i32) -> Result<Socket> {
        // SAFETY: the context lives as long as `self`, which outlives every socket's thread by `Drop` order.
        let socket = unsafe { (self.zmq.socket)(self.context, kind) };
        self.zmq
            .check(if socket.is_null() { -1 } else { 0 }, "make a ZeroMQ socket")?;
        Ok(Socket {
            zmq: Arc::clone(&self.zmq),
            socket,
        })
    }
}

impl Drop for ZmqContext {
    fn drop(&mut self) {
        // SAFETY: the pointer is from zmq_ctx_new. Blocks until the sockets are closed, which callers have done.
        unsafe { (self.zmq.ctx_term)(self.context) };
    }
}

impl Socket {
    /// Sets a number.
    ///
    /// # Errors
    /// When libzmq refuses.
    pub fn set(&self, option: i32, value: c_int) -> Result<()> {
        self.set_octets(option, &value.to_ne_bytes())
    }

    /// Sets octets or text.
    ///
    /// # Errors
    /// When libzmq refuses.
    pub fn set_octets(&self, option: i32, value: &[u8]) -> Result<()> {
        // SAFETY: pointer and length are of one slice; libzmq copies it.
        let rc = unsafe { (self.zmq.setsockopt)(self.socket, option, value.as_ptr().cast(), value.len()) };
        self.zmq
            .check(rc, &format!("set ZeroMQ option {option}"))
            .map(drop)
    }

    /// Binds, and says where: a `*` is resolved.
    ///
    /// # Errors
    /// When the address is taken or malformed.
    pub fn bind(&self, endpoint: &str) -> Result<String> {
        let text = CString::new(endpoint)?;
        // SAFETY: a C string that lives through the call.
        let rc = unsafe { (self.zmq.bind)(self.socket, text.as_ptr()) };
        self.zmq.check(rc, &format!("bind {endpoint}"))?;
        let mut octets = [0_u8; 256];
        let mut length = octets.len();
        // SAFETY: buffer and its length.
        let rc = unsafe {
            (self.zmq.getsockopt)(
                self.socket,
                option::LAST_ENDPOINT,
                octets.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        self.zmq.check(rc, "ask where it is bound")?;
        Ok(String::from_utf8_lossy(&octets[..length.saturating_sub(1)]).into_owned())
    }

    /// Connects, now or later.
    ///
    /// # Errors
    /// When the endpoint is malformed.
    pub fn connect(&self, endpoint: &str) -> Result<()> {
        let text = CString::new(endpoint)?;
        // SAFETY: a C string that lives through the call.
        let rc = unsafe { (self.zmq.connect)(self.socket, text.as_ptr()) };
        self.zmq.check(rc, &format!("connect {endpoint}")).map(drop)
    }

    /// Sends a message of these frames.
    ///
    /// # Errors
    /// When libzmq refuses.
    pub fn send(&self, frames: &[&[u8]]) -> Result<()> {
        for (index, frame) in frames.iter().enumerate() {
            let flags = if index + 1 < frames.len() { SNDMORE } else { 0 };
            // SAFETY: pointer and length are of one slice; libzmq copies it.
            let rc = unsafe { (self.zmq.send)(self.socket, frame.as_ptr().cast(), frame.len(), flags) };
            self.zmq.check(rc, "send")?;
        }
        Ok(())
    }

    /// Receives the frames of one message; `None`: nothing came within RCVTIMEO.
    ///
    /// # Errors
    /// When the context ends.
    pub fn receive(&self) -> Result<Option<Vec<Vec<u8>>>> {
        let mut frames = Vec::new();
        loop {
            let Some((frame, more)) = self.receive_frame()? else {
                return Ok(None);
            };
            frames.push(frame);
            if !more {
                return Ok(Some(frames));
            }
        }
    }

    fn receive_frame(&self) -> Result<Option<(Vec<u8>, bool)>> {
        let mut message = [0_u64; MESSAGE_OCTETS / 8];
        let at: Pointer = message.as_mut_ptr().cast();
        let zmq = &*self.zmq;
        // SAFETY: `at` points at 64 aligned octets, initialised by zmq_msg_init before any other use and closed on
        // every way out; data and size describe memory that lives until zmq_msg_close.
        unsafe {
            (zmq.msg_init)(at);
            if (zmq.msg_recv)(at, self.socket, 0) < 0 {
                let error = (zmq.errno)();
                (zmq.msg_close)(at);
                if matches!(error, EAGAIN | EINTR) {
                    return Ok(None);
                }
                zmq.check(-1, "receive")?;
            }
            let length = (zmq.msg_size)(at);
            let mut frame = vec![0; length];
            if length > 0 {
                std::ptr::copy_nonoverlapping((zmq.msg_data)(at).cast::<u8>(), frame.as_mut_ptr(), length);
            }
            let more = (zmq.msg_get)(at, MORE) != 0;
            (zmq.msg_close)(at);
            Ok(Some((frame, more)))
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: the pointer is from zmq_socket and closed once.
        unsafe { (self.zmq.close)(self.socket) };
    }
}
