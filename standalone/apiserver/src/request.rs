//! From a URL to what is asked: one parser for every path of the API.
//!
//! `/api/v1/...` and `/apis/GROUP/VERSION/...` name resources, everything else is another endpoint. The parser knows no resources: whether a
//! segment is a subresource or a name is a matter of position, and `namespaces/NAME/...` is the only ambiguity (a namespaced resource, unless
//! what follows is a subresource of the namespace itself).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::errors::Status;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Resource(RequestInfo),
    /// Discovery, OpenAPI, health, version: the path without a trailing slash.
    Other(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    pub(crate) group: String,
    pub(crate) version: String,
    /// The plural.
    pub(crate) resource: String,
    /// Empty: cluster scope, or all namespaces.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// `/api/v1/watch/...`, or `?watch=true` on a collection.
    pub(crate) watch: bool,
}

/// The query as pairs, decoded, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

// === impl Target ===

impl Target {
    pub(crate) fn parse(path: &str) -> Result<Self, Status> {
        let trimmed = path.trim_end_matches('/');
        let segments: Vec<Cow<'_, str>> = trimmed
            .split('/')
            .skip(1)
            .map(|segment| percent_decode_str(segment).decode_utf8())
            .collect::<Result<_, _>>()
            .map_err(|_| Status::bad_request(format!("the path {path:?} is not UTF-8")))?;
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(Self::Other(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })),
        };
        let mut info = RequestInfo { group: group.to_owned(), version: version.to_owned(), ..RequestInfo::default() };
        let rest = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => {
                info.watch = true;
                rest
            }
            rest => rest,
        };
        let rest = match rest {
            ["namespaces", namespace, resource, rest @ ..]
                if !(group.is_empty() && rest.is_empty() && NAMESPACE_SUBRESOURCES.contains(resource)) =>
            {
                info.namespace = (*namespace).to_owned();
                info.resource = (*resource).to_owned();
                rest
            }
            [resource, rest @ ..] => {
                info.resource = (*resource).to_owned();
                rest
            }
            [] => return Err(Status::no_such_page()),
        };
        if let [name, subresource @ ..] = rest {
            info.name = (*name).to_owned();
            info.subresource = subresource.join("/");
        }
        Ok(Self::Resource(info))
    }
}

// === impl Query ===

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The value, "" when absent.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// True for `true` and `1`, as Go's ParseBool has it for the values clients send.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1" | "True" | "TRUE" | "t" | "T")
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("invalid {name} {text:?}: must be a number"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> RequestInfo {
        match Target::parse(path).expect("parses") {
            Target::Resource(info) => info,
            Target::Other(path) => panic!("{path} names no resource"),
        }
    }

    #[test]
    fn paths_name_resources() {
        let info = resource("/api/v1/namespaces/default/pods/a/log");
        assert_eq!(
            (&*info.namespace, &*info.resource, &*info.name, &*info.subresource),
            ("default", "pods", "a", "log")
        );
        let info = resource("/apis/apps/v1/deployments/");
        assert_eq!((&*info.group, &*info.namespace, &*info.resource, &*info.name), ("apps", "", "deployments", ""));
        let info = resource("/api/v1/namespaces/a%2eb");
        assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("", "namespaces", "a.b"));
        let info = resource("/api/v1/namespaces/x/finalize");
        assert_eq!((&*info.resource, &*info.name, &*info.subresource), ("namespaces", "x", "finalize"));
        let info = resource("/apis/example.com/v1/namespaces/x/status");
        assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("x", "status", ""));
        let info = resource("/api/v1/watch/namespaces/x/pods");
        assert!(info.watch && info.resource == "pods");
        assert_eq!(Target::parse("/apis/apps/v1/").expect("parses"), Target::Other("/apis/apps/v1".to_owned()));
        assert_eq!(Target::parse("/").expect("parses"), Target::Other("/".to_owned()));
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("fieldSelector=metadata.name%3Dx+y&watch=1&limit=5&bad=a"));
        assert_eq!(query.get("fieldSelector"), "metadata.name=x y");
        assert!(query.flag("watch") && !query.flag("other"));
        assert_eq!(query.number("limit").expect("a number"), Some(5));
        assert!(query.number("bad").is_err());
    }
}
