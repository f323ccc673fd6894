//! The small answers a proxy gives itself, in the form upstream gives them.

use bytes::Bytes;
use http::{
    Response, StatusCode,
    header::{self, HeaderValue},
};

use crate::ResponseBody;

/// An error text the way Go's `http.Error` writes it: plain text, a newline at the end, no sniffing.
pub fn http_error<G>(status: StatusCode, message: &str) -> Response<ResponseBody<G>> {
    let mut body = String::with_capacity(message.len() + 1);
    body.push_str(message);
    body.push('\n');
    let mut response = text(status, body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A body as it is.
pub fn text<G>(status: StatusCode, body: impl Into<Bytes>) -> Response<ResponseBody<G>> {
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = status;
    response
}

/// A status and nothing else.
pub fn empty<G>(status: StatusCode) -> Response<ResponseBody<G>> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}
