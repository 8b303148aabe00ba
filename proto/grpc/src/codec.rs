//! How messages are encoded: as any gRPC does, in buffers as long as the messages are.
//!
//! gRPC holds two buffers for each call that is open. The sessions of 10,000 agents are open for ever and say little: with the
//! library's 8 KiB for each, what they hold for nothing is more than their TLS.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What a buffer begins with, in octets.
///
/// Most heartbeats fit. Half of it grows for them; double it, and 10,000 streams hold 10 MiB more.
const BUFFER_OCTETS: usize = 512;
/// When a buffer is handed on to the line: what is waiting then is written at once.
///
/// The library's own. Half of it writes long streams in more pieces; double it for nothing.
const YIELD_OCTETS: usize = 32 << 10;

/// Protocol Buffers, in small buffers.
#[derive(Debug)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

/// Either direction.
#[derive(Debug)]
pub struct Small<T>(PhantomData<T>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Small<T>;
    type Decoder = Small<U>;

    fn encoder(&mut self) -> Small<T> {
        Small(PhantomData)
    }

    fn decoder(&mut self) -> Small<U> {
        Small(PhantomData)
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_OCTETS, YIELD_OCTETS)
}

impl<T: Message> Encoder for Small<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // At once, not by doubling: what is reserved here stays with the call.
        into.reserve(message.encoded_len());
        message.encode_raw(into);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

impl<T: Message + Default> Decoder for Small<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        // The library's own codec says the same.
        let read = T::decode(from).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(read))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
