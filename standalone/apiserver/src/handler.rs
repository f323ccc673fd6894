//! One request to one response: routing, options, and the verbs.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::{self, Body, Decoded};
use crate::change::{self, Patch};
use crate::core::{Answer, Call, Core, FieldValidation, Identity, Written, dry_run};
use crate::delete::DeleteOptions;
use crate::discovery;
use crate::errors::{FieldError, Status};
use crate::metadata;
use crate::pipeline::{Source, in_version};
use crate::read::Filter;
use crate::registry::{Kind, Registry};
use crate::request::{Query, RequestInfo, Target};
use crate::view::View;

/// Where a request comes from decides when a write is acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) identity: Arc<Identity>,
    /// After the commit is on disk, not only in memory.
    pub(crate) durable: bool,
}

// === impl Core ===

impl Core {
    pub(crate) async fn respond<B>(self: &Arc<Self>, request: Request<B>, origin: Origin) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: fmt::Display,
    {
        let (parts, body) = request.into_parts();
        self.handle(&parts, body, origin).await.unwrap_or_else(|status| body::failure(&status))
    }

    async fn handle<B>(self: &Arc<Self>, parts: &Parts, body: B, origin: Origin) -> Result<Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: fmt::Display,
    {
        let registry = self.kinds.load();
        let mut info = match Target::parse(parts.uri.path())? {
            Target::Resource(info) => info,
            Target::Other(path) => return self.other(&registry, parts, &path),
        };
        let query = Query::parse(parts.uri.query());
        info.watch = info.watch || (query.flag("watch") && info.name.is_empty());
        let kind = resolve(&registry, &info)?;
        if !kind.namespaced() && !info.namespace.is_empty() {
            return Err(Status::no_such_resource());
        }
        let now = jiff::Timestamp::now();
        let call = Call {
            dry_run: dry_run(&query)?,
            fields: FieldValidation::parse(&query)?,
            kind,
            namespace: info.namespace,
            name: info.name,
            subresource: info.subresource,
            identity: Arc::clone(&origin.identity),
            now,
        };
        if matches!(parts.method, Method::GET | Method::HEAD) {
            return self.get_or_watch(parts, &query, call, info.watch).await;
        }
        let bytes = body::read(body).await?;
        let (code, written) = self.write(parts, &query, &call, &bytes)?;
        if let (true, Some(revision)) = (origin.durable, written.revision) {
            self.store.durable(revision).await.map_err(Status::internal)?;
        }
        let bytes = match &written.answer {
            Answer::Stored(object) => View::Object.object(&call.kind, &object.value, Some(object), now),
            Answer::Computed(value) => Bytes::from(value.to_string()),
        };
        let mut response = body::json_bytes(code, bytes);
        body::warn(&mut response, &written.warnings);
        Ok(response)
    }

    async fn get_or_watch(
        self: &Arc<Self>,
        parts: &Parts,
        query: &Query,
        call: Call,
        watch: bool,
    ) -> Result<Response<Body>, Status> {
        match (&*call.subresource, call.name.is_empty()) {
            ("", true) if watch => {
                require(&call.kind, "watch")?;
                self.watch(call, query, View::negotiate(&parts.headers, query)?).await
            }
            ("", true) => {
                require(&call.kind, "list")?;
                let bytes = self.list(&call, query, View::negotiate(&parts.headers, query)?).await?;
                Ok(body::json_bytes(StatusCode::OK, bytes))
            }
            ("", false) | ("status", false) => {
                require(&call.kind, "get")?;
                let bytes = self.read(&call, query, View::negotiate(&parts.headers, query)?).await?;
                Ok(body::json_bytes(StatusCode::OK, bytes))
            }
            ("scale", false) => {
                let paths = call.kind.scale.as_ref().ok_or_else(Status::no_such_resource)?;
                let object = self.get(&call)?;
                Ok(body::json(StatusCode::OK, &change::scale_of(paths, &object.value)))
            }
            ("log", false) => self.log(&call, query).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn write(&self, parts: &Parts, query: &Query, call: &Call, bytes: &[u8]) -> Result<(StatusCode, Written), Status> {
        let media_type = body::media_type(&parts.headers);
        let ok = |written| (StatusCode::OK, written);
        match (&parts.method, &*call.subresource, call.name.is_empty()) {
            (&Method::POST, "", true) => {
                require(&call.kind, "create")?;
                let decoded = body::decode(media_type, bytes)?;
                self.post(call, decoded).map(|written| (StatusCode::CREATED, written))
            }
            (&Method::POST, subresource, false) if !subresource.is_empty() => {
                let decoded = body::decode(media_type, bytes)?;
                self.act(call, &decoded.value).map(|written| (StatusCode::CREATED, written))
            }
            (&Method::PUT, _, false) => {
                require(&call.kind, "update")?;
                let Decoded { value, duplicates } = body::decode(media_type, bytes)?;
                self.put(call, &value, &duplicates).map(ok)
            }
            (&Method::PATCH, _, false) => {
                require(&call.kind, "patch")?;
                self.patch(call, media_type, bytes).map(ok)
            }
            (&Method::DELETE, "", false) => {
                require(&call.kind, "delete")?;
                let options = DeleteOptions::parse(&body::decode(media_type, bytes)?.value, query)?;
                let written = self.delete(call, &options)?;
                self.after_write(call, &written);
                Ok(ok(written))
            }
            (&Method::DELETE, "", true) => {
                require(&call.kind, "deletecollection")?;
                let options = DeleteOptions::parse(&body::decode(media_type, bytes)?.value, query)?;
                self.delete_collection(call, query, &options).map(ok)
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// Creates an object, or answers a review.
    pub(crate) fn post(&self, call: &Call, decoded: Decoded) -> Result<Written, Status> {
        let Decoded { value, duplicates } = decoded;
        let answer = self.with_context(call, "", |context| call.kind.strategy.answer(context, &value));
        if let Some(answer) = answer {
            let mut answer = answer?;
            if call.kind.plural == "tokenreviews" {
                answer["status"] = self.tokens.review(metadata::text(&value, "/spec/token"));
            }
            return Ok(Written::computed(answer, None, Vec::new()));
        }
        if call.kind.namespaced() && call.namespace.is_empty() {
            return Err(Status::method_not_allowed());
        }
        let written = self.create(call, value, &duplicates)?;
        self.after_write(call, &written);
        if call.kind.storage == "namespaces" && written.revision.is_some() {
            self.furnish(metadata::name(written.answer.value()))?;
        }
        Ok(written)
    }

    pub(crate) fn put(&self, call: &Call, value: &Value, duplicates: &[String]) -> Result<Written, Status> {
        let source = Source::Object { duplicates };
        self.change(call, source, &|_| Ok(value.clone()))
    }

    fn patch(&self, call: &Call, media_type: &str, bytes: &[u8]) -> Result<Written, Status> {
        let patch = Patch::parse(&call.kind, media_type, bytes)?;
        let scale = call.subresource == "scale";
        self.change(call, Source::Patch { body: bytes }, &|current| match scale {
            true => patch.as_scale(current),
            false => patch.apply(&call.kind, current),
        })
    }

    fn change(
        &self,
        call: &Call,
        source: Source<'_>,
        change: &dyn Fn(&Value) -> Result<Value, Status>,
    ) -> Result<Written, Status> {
        match (&*call.subresource, &call.kind.scale) {
            ("scale", Some(paths)) => {
                let whole = |object: &Value| {
                    let scale = change(&change::scale_of(paths, object))?;
                    change::scaled(&call.kind, paths, object, &scale)
                };
                let written = self.modify(call, &whole, source)?;
                let scale = change::scale_of(paths, written.answer.value());
                Ok(Written::computed(scale, written.revision, written.warnings))
            }
            ("", _) => {
                let written = self.modify(call, change, source)?;
                self.after_write(call, &written);
                Ok(written)
            }
            ("status", _) if call.kind.has_status => self.modify(call, change, source),
            ("finalize", _) if call.kind.storage == "namespaces" => self.modify(call, change, source),
            _ => Err(Status::no_such_resource()),
        }
    }

    /// POST to a subresource.
    fn act(&self, call: &Call, body: &Value) -> Result<Written, Status> {
        let known = call
            .kind
            .subresources
            .iter()
            .any(|known| known.name == call.subresource && known.verbs.iter().any(|verb| verb == "create"));
        match &*call.subresource {
            "binding" if known => self.bind(call, body),
            "eviction" if known => {
                let options = DeleteOptions::parse(&body["deleteOptions"], &Query::default())?;
                let target = call.on(&call.kind, &call.namespace, &call.name, "");
                let revision = self.delete(&target, &options)?.revision;
                Ok(Written::computed(success(), revision, Vec::new()))
            }
            "token" if known => {
                self.get(call)?;
                Ok(Written::computed(crate::auth::token_request(self, call, body)?, None, Vec::new()))
            }
            _ => Err(Status::no_such_resource()),
        }
    }

    fn bind(&self, call: &Call, body: &Value) -> Result<Written, Status> {
        let node = metadata::text(body, "/target/name");
        if node.is_empty() {
            return Err(Status::invalid(&call.kind, &call.name, &[FieldError::required("target.name", "")]));
        }
        let now = metadata::timestamp(call.now);
        let written = self.modify(
            call,
            &|pod| {
                let bound = metadata::text(pod, "/spec/nodeName");
                if !bound.is_empty() {
                    let why = format!("pod {} is already assigned to node {bound:?}", call.name);
                    return Err(Status::conflict(&call.kind, &call.name, &why));
                }
                if metadata::deleting(pod) {
                    let why = format!("pod {} is being deleted, cannot be assigned to a host", call.name);
                    return Err(Status::conflict(&call.kind, &call.name, &why));
                }
                let mut pod = pod.clone();
                pod["spec"]["nodeName"] = node.into();
                let conditions = &mut pod["status"]["conditions"];
                if !conditions.is_array() {
                    *conditions = json!([]);
                }
                if let Some(conditions) = conditions.as_array_mut() {
                    conditions.retain(|condition| condition["type"] != "PodScheduled");
                    conditions.push(json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now }));
                }
                Ok(pod)
            },
            Source::Patch { body: b"" },
        )?;
        Ok(Written::computed(success(), written.revision, written.warnings))
    }

    fn delete_collection(&self, call: &Call, query: &Query, options: &DeleteOptions) -> Result<Written, Status> {
        let snapshot = self.select(call, &Filter::parse(&call.kind, query)?);
        let mut revision = None;
        let mut items = Vec::new();
        for object in snapshot.objects {
            let one = call.on(&call.kind, &object.key.namespace, &object.key.name, "");
            match self.delete(&one, options) {
                Ok(written) => {
                    revision = written.revision.or(revision);
                    self.after_write(&one, &written);
                    items.push(in_version(&call.kind, &object.value).into_owned());
                }
                Err(status) if status.code == StatusCode::NOT_FOUND => {}
                Err(status) => return Err(status),
            }
        }
        let list = json!({
            "kind": &*call.kind.list_kind, "apiVersion": call.kind.api_version(),
            "metadata": { "resourceVersion": self.store.revision().to_string() }, "items": items,
        });
        Ok(Written::computed(list, revision, Vec::new()))
    }

    async fn log(&self, call: &Call, query: &Query) -> Result<Response<Body>, Status> {
        if call.kind.storage != "pods" {
            return Err(Status::no_such_resource());
        }
        let pod = self.get(call)?;
        let request = crate::logs::LogRequest::parse(&call.namespace, &pod.value, query)?;
        let Some(source) = self.logs.load_full() else {
            return Err(Status::internal("no node agent serves logs here"));
        };
        let lines = source.0.open(request).await?;
        Ok(crate::logs::respond(lines))
    }

    /// Everything that is no resource.
    fn other(&self, registry: &Registry, parts: &Parts, path: &str) -> Result<Response<Body>, Status> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(Status::no_such_page());
        }
        match path {
            "/version" => return Ok(body::json(StatusCode::OK, &self.version_info())),
            "/healthz" | "/livez" | "/readyz" => {
                let verbose = Query::parse(parts.uri.query());
                let text = match parts.uri.query() {
                    Some(query) if query.contains("verbose") => format!("[+]ping ok\n{} check passed\n", &path[1..]),
                    _ => "ok".to_owned(),
                };
                drop(verbose);
                return Ok(body::text(StatusCode::OK, text));
            }
            _ => {}
        }
        let answer = discovery::respond(registry, parts).or_else(|| self.openapi.respond(registry, parts));
        answer.map(|response| response.map(body::full)).ok_or_else(Status::no_such_page)
    }

    fn version_info(&self) -> Value {
        let version = self.version.trim_start_matches('v');
        let mut parts = version.split('.');
        let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("34"));
        json!({
            "major": major, "minor": minor, "gitVersion": self.version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "", "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, arch()),
        })
    }
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn success() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 })
}

fn require(kind: &Kind, verb: &str) -> Result<(), Status> {
    if kind.has_verb(verb) { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// The kind of a path. What is not there is told apart as clients expect: below a built-in group a Status, elsewhere plain text.
fn resolve(registry: &Registry, info: &RequestInfo) -> Result<Arc<Kind>, Status> {
    match registry.get(&info.group, &info.version, &info.resource) {
        Some(kind) => Ok(Arc::clone(kind)),
        None if registry.kinds().iter().any(|kind| kind.group == info.group && !kind.custom) => {
            Err(Status::no_such_resource())
        }
        None => Err(Status::no_such_page()),
    }
}
