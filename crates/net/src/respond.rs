//! The small answers a proxy gives itself, in the form upstream gives them.

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
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

/// What Prometheus gets: `render`'s text for `/metrics`, and for everything else what Go's server of metrics answers.
pub fn exposition<B, G>(request: &Request<B>, render: impl FnOnce() -> String) -> Response<ResponseBody<G>> {
    if request.uri().path() != "/metrics" {
        return http_error(StatusCode::NOT_FOUND, "404 page not found");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = http_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = text(StatusCode::OK, render());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
