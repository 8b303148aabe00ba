//! A bound SUB of the installed libzmq, loaded at run time: what ntopng has.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::Library;

const SUB: c_int = 2;
const SUBSCRIBE: c_int = 6;
const RCVBUF: c_int = 12;
const RCVMORE: c_int = 13;
const EVENTS: c_int = 15;
const LINGER: c_int = 17;
const RCVHWM: c_int = 24;
const RCVTIMEO: c_int = 27;
const LAST_ENDPOINT: c_int = 32;
const IPV6: c_int = 42;
const CURVE_SERVER: c_int = 47;
const CURVE_SECRETKEY: c_int = 49;

/// Topics of ntopng 6, as `Utils.cpp` has them.
const TOPICS: [&str; 9] = [
    "flow",
    "event",
    "counter",
    "template",
    "option",
    "hello",
    "listening-ports",
    "snmp-ifaces",
    "message",
];

fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        // SAFETY: libzmq's initialisers have no requirements.
        unsafe { Library::new("libzmq.so.5") }.map_err(|error| error.to_string())
    });
    loaded.as_ref().map_err(Clone::clone)
}

/// Whether libzmq is here; prints why not.
pub(crate) fn is_here() -> bool {
    match library() {
        Ok(_) => true,
        Err(why) => {
            println!("skipped: libzmq (Debian: libzmq5) does not load: {why}");
            false
        }
    }
}

macro_rules! call {
    ($name:literal, fn($($type:ty),*) -> $result:ty, $($argument:expr),*) => {{
        // SAFETY: the signature is that of zmq.h; arguments live during the call.
        unsafe {
            let function = library()
                .expect("asked for with is_here")
                .get::<unsafe extern "C" fn($($type),*) -> $result>($name)
                .expect("zmq.h of 4.x has it");
            function($($argument),*)
        }
    }};
}

/// How a SUB is set up.
#[derive(Clone, Copy, Default)]
pub(crate) struct SubOptions {
    /// Receive queue, in messages; 0: libzmq's default of 1,000.
    pub(crate) queue_messages: c_int,
    /// Receive buffer of the kernel, in octets; 0: the system's.
    pub(crate) buffer_octets: c_int,
    /// CURVE secret key, Z85.
    pub(crate) secret_key: Option<&'static str>,
    /// Port, 0: any.
    pub(crate) port: u16,
    /// Whether to bind `[::1]`.
    pub(crate) ipv6: bool,
}

/// A bound SUB, subscribed to what ntopng subscribes to.
pub(crate) struct Sub {
    context: *mut c_void,
    socket: *mut c_void,
    pub(crate) port: u16,
}

// SAFETY: a socket may move to another thread with a full fence between (zmq_socket(3)), which a thread's start is.
unsafe impl Send for Sub {}

impl Sub {
    pub(crate) fn bind(options: SubOptions) -> Self {
        let context = call!(b"zmq_ctx_new", fn() -> *mut c_void,);
        let socket = call!(b"zmq_socket", fn(*mut c_void, c_int) -> *mut c_void, context, SUB);
        assert!(!context.is_null() && !socket.is_null());
        let mut sub = Self {
            context,
            socket,
            port: options.port,
        };
        sub.set(LINGER, 0);
        sub.set(RCVTIMEO, 100);
        if options.queue_messages > 0 {
            sub.set(RCVHWM, options.queue_messages);
        }
        if options.buffer_octets > 0 {
            sub.set(RCVBUF, options.buffer_octets);
        }
        if let Some(key) = options.secret_key {
            sub.set(CURVE_SERVER, 1);
            sub.set_octets(CURVE_SECRETKEY, key.as_bytes());
        }
        for topic in TOPICS {
            sub.set_octets(SUBSCRIBE, topic.as_bytes());
        }
        let host = if options.ipv6 { "[::1]" } else { "127.0.0.1" };
        sub.set(IPV6, c_int::from(options.ipv6));
        let port = match options.port {
            0 => "*".to_owned(),
            port => port.to_string(),
        };
        let address = CString::new(format!("tcp://{host}:{port}")).unwrap();
        let mut bound = -1;
        // A port that was just closed may take libzmq's background thread a moment to let go.
        for _ in 0..500 {
            bound = call!(
                b"zmq_bind",
                fn(*mut c_void, *const c_char) -> c_int,
                sub.socket,
                address.as_ptr()
            );
            if bound == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(bound, 0, "bind {address:?}");
        sub.port = sub.bound_port();
        sub
    }

    /// The next message's frames; `None`: none came within 100 ms.
    pub(crate) fn receive(&self) -> Option<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let mut frame = vec![0_u8; 200_000];
            let size = call!(
                b"zmq_recv",
                fn(*mut c_void, *mut c_void, usize, c_int) -> c_int,
                self.socket,
                frame.as_mut_ptr().cast(),
                frame.len(),
                0
            );
            let size = usize::try_from(size).ok()?;
            assert!(size <= frame.len(), "a frame of {size} octets");
            frame.truncate(size);
            frames.push(frame);
            if self.get(RCVMORE) == 0 {
                return Some(frames);
            }
        }
    }

    /// Lets the socket look after its connections: a SUB subscribes at a new one only within a call of its owner.
    pub(crate) fn attend(&self) {
        self.get(EVENTS);
    }

    fn set(&self, option: c_int, value: c_int) {
        self.set_octets(option, &value.to_ne_bytes());
    }

    fn set_octets(&self, option: c_int, value: &[u8]) {
        let result = call!(
            b"zmq_setsockopt",
            fn(*mut c_void, c_int, *const c_void, usize) -> c_int,
            self.socket,
            option,
            value.as_ptr().cast(),
            value.len()
        );
        assert_eq!(result, 0, "option {option}");
    }

    fn get(&self, option: c_int) -> c_int {
        let mut value: c_int = 0;
        let mut size = size_of::<c_int>();
        let result = call!(
            b"zmq_getsockopt",
            fn(*mut c_void, c_int, *mut c_void, *mut usize) -> c_int,
            self.socket,
            option,
            (&raw mut value).cast(),
            &raw mut size
        );
        assert_eq!(result, 0, "option {option}");
        value
    }

    fn bound_port(&self) -> u16 {
        let mut text = [0_u8; 128];
        let mut size = text.len();
        let result = call!(
            b"zmq_getsockopt",
            fn(*mut c_void, c_int, *mut c_void, *mut usize) -> c_int,
            self.socket,
            LAST_ENDPOINT,
            text.as_mut_ptr().cast(),
            &raw mut size
        );
        assert_eq!(result, 0);
        let text = String::from_utf8_lossy(&text[..size - 1]).into_owned();
        text.rsplit(':').next().unwrap().parse().unwrap()
    }
}

impl Drop for Sub {
    /// What a killed process leaves: the queue is gone, the sockets are closed.
    fn drop(&mut self) {
        call!(b"zmq_close", fn(*mut c_void) -> c_int, self.socket);
        self.socket = null_mut();
        call!(b"zmq_ctx_term", fn(*mut c_void) -> c_int, self.context);
    }
}
