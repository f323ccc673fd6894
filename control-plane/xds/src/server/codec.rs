//! Requests are decoded into the generated messages, responses written from shared bytes.

use std::marker::PhantomData;

use bytes::BufMut;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{core::Response, wire};

pub(super) struct Discovery<M>(PhantomData<M>);

/// Bytes that are already a message (the health service's answer).
pub(super) struct Raw;

pub(super) struct ResponseEncoder;
pub(super) struct RequestDecoder<M>(PhantomData<M>);

impl<M> Default for Discovery<M> {
    fn default() -> Self {
        Discovery(PhantomData)
    }
}

impl<M: Message + Default + 'static> Codec for Discovery<M> {
    type Encode = Response;
    type Decode = M;
    type Encoder = ResponseEncoder;
    type Decoder = RequestDecoder<M>;

    fn encoder(&mut self) -> Self::Encoder {
        ResponseEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder(PhantomData)
    }
}

impl Encoder for ResponseEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(wire::response_size(&item));
        wire::put_response(out, &item);
        Ok(())
    }
}

impl<M: Message + Default> Decoder for RequestDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let message = M::decode(buf).map_err(|error| Status::invalid_argument(format!("not a request: {error}")))?;
        Ok(Some(message))
    }
}

impl Codec for Raw {
    type Encode = &'static [u8];
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = &'static [u8];
    type Error = Status;

    fn encode(&mut self, item: &'static [u8], out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes::Buf::advance(buf, bytes::Buf::remaining(buf));
        Ok(Some(()))
    }
}
