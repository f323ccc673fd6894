//! The API as the real kubectl sees it, over HTTPS: every command of the everyday list, its output and its exit code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Admission, AdmissionRequest, Denied, Identity, LogRequest, LogSource, Options, Server, Status};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const TOKEN: &str = "the-token-of-the-administrator";
const LIMIT: Duration = Duration::from_secs(60);
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/crds");

const HELLO: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello, labels: {app: hello}}
spec:
  template:
    spec:
      containers:
      - image: dev.local/hello
        env: [{name: TARGET, value: World}]
"#;

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: one, image: a:1}
      - {name: two, image: b:1}
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, image: a}]}
"#;

struct Machine {
    server: Server,
    config: PathBuf,
    directory: PathBuf,
}

/// Refuses what is named so, as a webhook would.
struct NoEvil;

impl Admission for NoEvil {
    fn mutate(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), Denied> {
        if request.group == "serving.knative.dev" && request.subresource.is_empty() {
            object["metadata"]["annotations"]["example.com/by"] = request.user.into();
        }
        Ok(())
    }

    fn validate(&self, request: &AdmissionRequest<'_>, _object: &Value) -> Result<Vec<String>, Denied> {
        match request.name {
            "evil" => Err(Denied::new("validation.example.com", "evil is not wanted: spec")),
            "odd" => Ok(vec!["odd is discouraged".to_owned()]),
            _ => Ok(Vec::new()),
        }
    }
}

struct Lines;

impl LogSource for Lines {
    fn open(
        &self,
        request: LogRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, std::io::Result<Bytes>>, Status>> {
        Box::pin(async move {
            let lines = (0..3).map(move |line| Ok(Bytes::from(format!("{} line {line}\n", request.container))));
            Ok(stream::iter(lines).boxed())
        })
    }
}

impl Machine {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = std::env::temp_dir().join(format!("kubectl-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::create_dir_all(&directory).expect("a directory");
        let options = Options { admission: vec![Arc::new(NoEvil)], logs: Some(Arc::new(Lines)), ..Options::default() };
        let server = Server::open(options).await.expect("opens");
        let mut manifests: Vec<PathBuf> =
            std::fs::read_dir(CRDS).expect("the charts").map(|entry| entry.expect("a file").path()).collect();
        manifests.sort();
        for manifest in manifests {
            server.apply_manifest(&std::fs::read_to_string(manifest).expect("a file")).expect("applies");
        }
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("a configuration");
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        server.serve(listener, Some(Arc::new(tls)), TOKEN);
        let certificate = directory.join("ca.crt");
        std::fs::write(&certificate, certified.cert.pem()).expect("writes");
        let config = directory.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "m",
            "clusters": [{"name": "m", "cluster": {"server": format!("https://{address}"), "certificate-authority": certificate}}],
            "users": [{"name": "m", "user": {"token": TOKEN}}],
            "contexts": [{"name": "m", "context": {"cluster": "m", "user": "m"}}],
        });
        std::fs::write(&config, text.to_string()).expect("writes");
        Self { server, config, directory }
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg(format!("--kubeconfig={}", self.config.display()))
            .arg(format!("--cache-dir={}", self.directory.join("cache").display()))
            .args(line)
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &[&str], input: &str) -> Output {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await.expect("reads its input");
        drop(stdin);
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("ends in time").expect("ends")
    }

    /// Succeeds; what it prints.
    async fn ok(&self, line: &str) -> String {
        self.ok_with(line, "").await
    }

    async fn ok_with(&self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.run(&words, input).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {line}: {out}{err}");
        format!("{out}{err}")
    }

    /// Whether it succeeds, and all it prints.
    async fn both(&self, line: &str, input: &str) -> (bool, String) {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.run(&words, input).await;
        let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
        (output.status.success(), text)
    }

    /// Fails; what it says.
    async fn fails(&self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.run(&words, input).await;
        assert!(!output.status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn yaml(&self, resource: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("get {resource} -o json")).await).expect("JSON")
    }

    fn services(&self) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("serving.knative.dev", "v1", "Service"));
        Api::namespaced_with(self.server.client(), "default", &resource)
    }

    async fn ready(&self, name: &str) {
        let generation = self.services().get(name).await.expect("gets").metadata.generation;
        let status = json!({"status": {"observedGeneration": generation, "url": format!("http://{name}.default.example.com"),
            "latestCreatedRevisionName": format!("{name}-00001"), "latestReadyRevisionName": format!("{name}-00001"),
            "conditions": [{"type": "Ready", "status": "True"}]}});
        self.services().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.expect("patches");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_get_wait_delete() {
    let machine = Machine::start().await;
    has(&machine.ok_with("apply -f -", HELLO).await, &["service.serving.knative.dev/hello created"]);
    has(&machine.ok_with("apply -f -", HELLO).await, &["unchanged"]);
    let changed = HELLO.replace("World", "Moon");
    has(&machine.ok_with("diff -f -", HELLO).await, &[""]);
    has(&machine.ok_with("apply --dry-run=server -f -", &changed).await, &["configured (server dry run)"]);
    has(&machine.ok_with("apply -f -", &changed).await, &["configured"]);
    let object = machine.yaml("ksvc/hello").await;
    assert_eq!(object["metadata"]["generation"], 2);
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "Moon");
    assert_eq!(object["metadata"]["annotations"]["example.com/by"], "kubernetes-admin");
    let words = ["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=30s"];
    let (waited, ()) = tokio::join!(machine.run(&words, ""), machine.ready("hello"));
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    let table = machine.ok("get ksvc").await;
    has(
        &table,
        &["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON", "http://hello.default.example.com", "True"],
    );
    has(
        &machine.ok("get ksvc,configuration,revision,route,kingress,sks,podautoscaler,deployment,pod").await,
        &["hello"],
    );
    has(&machine.ok("get ksvc -o name").await, &["service.serving.knative.dev/hello"]);
    assert_eq!(machine.ok("get ksvc hello -o jsonpath={.status.url}").await, "http://hello.default.example.com");
    has(&machine.ok("get ksvc -A -o wide -l app=hello").await, &["default", "hello"]);
    has(&machine.ok("get ksvc -l app!=hello").await, &["No resources found"]);
    has(&machine.ok("get ksvc --field-selector metadata.name=hello -o yaml").await, &["kind: List", "name: hello"]);
    has(&machine.fails("get ksvc --field-selector spec.x=hello", "").await, &["spec.x"]);
    has(&machine.fails("get ksvc nobody", "").await, &[r#"services.serving.knative.dev "nobody" not found"#]);
    has(&machine.fails("get nonsense", "").await, &["the server doesn't have a resource type \"nonsense\""]);
    has(&machine.ok("describe ksvc hello").await, &["Name:", "hello", "dev.local/hello"]);
    has(&machine.ok("delete ksvc hello").await, &["deleted"]);
    has(&machine.fails("get ksvc hello", "").await, &["not found"]);
    has(&machine.ok("get services").await, &["kubernetes", "CLUSTER-IP", "10.96.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_patch_label_annotate_replace() {
    let machine = Machine::start().await;
    machine.ok_with("create -f -", HELLO).await;
    has(
        &machine.fails("create -f -", HELLO).await,
        &["AlreadyExists", "services.serving.knative.dev \"hello\" already exists"],
    );
    has(&machine.ok("label ksvc hello tier=front").await, &["labeled"]);
    has(&machine.ok("annotate ksvc hello note=x").await, &["annotated"]);
    has(&machine.ok("label ksvc hello tier-").await, &["unlabeled"]);
    has(
        &machine.ok(r#"patch ksvc hello --type merge -p {"spec":{"template":{"spec":{"timeoutSeconds":10}}}}"#).await,
        &["patched"],
    );
    let json_patch =
        r#"patch ksvc hello --type json -p [{"op":"replace","path":"/spec/template/spec/timeoutSeconds","value":20}]"#;
    has(&machine.ok(json_patch).await, &["patched"]);
    has(&machine.ok(json_patch).await, &["no change"]);
    has(
        &machine.fails(&json_patch.replace("replace", "test").replace("20", "21"), "").await,
        &["the server rejected our request due to an error in our request"],
    );
    has(&machine.fails(r#"patch ksvc hello -p {"spec":{}}"#, "").await, &["application/merge-patch+json"]);
    let object = machine.yaml("ksvc/hello").await;
    assert_eq!(object["spec"]["template"]["spec"]["timeoutSeconds"], 20);
    assert_eq!(object["metadata"]["labels"], json!({"app": "hello"}));

    let editor = machine.directory.join("editor");
    std::fs::write(&editor, "sed -i 's/value: World/value: Edited/' \"$1\"\n").expect("writes");
    let edited = machine
        .command(&["edit", "ksvc", "hello"])
        .env("KUBE_EDITOR", format!("sh {}", editor.display()))
        .output()
        .await
        .expect("runs");
    has(&String::from_utf8_lossy(&edited.stdout), &["service.serving.knative.dev/hello edited"]);
    let mut object = machine.yaml("ksvc/hello").await;
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "Edited");

    object["spec"]["template"]["spec"]["timeoutSeconds"] = 30.into();
    has(&machine.ok_with("replace -f -", &object.to_string()).await, &["replaced"]);
    has(&machine.fails("replace -f -", &object.to_string()).await, &["the object has been modified"]);
    let typo = HELLO.replace("template:", "templates:").replace("name: hello", "name: typo");
    has(&machine.fails("apply -f -", &typo).await, &["unknown field \"spec.templates\""]);
    let wrong =
        HELLO.replace("containers:", "timeoutSeconds: soon\n      containers:").replace("name: hello", "name: wrong");
    has(&machine.fails("apply -f -", &wrong).await, &["spec.template.spec.timeoutSeconds", "must be of type integer"]);
    let evil = HELLO.replace("name: hello", "name: evil");
    has(
        &machine.fails("apply -f -", &evil).await,
        &["admission webhook \"validation.example.com\" denied the request: evil is not wanted"],
    );
    let odd = HELLO.replace("name: hello", "name: odd");
    has(&machine.ok_with("apply -f -", &odd).await, &["Warning: odd is discouraged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_kinds() {
    let machine = Machine::start().await;
    machine.ok_with("apply -f -", DEPLOYMENT).await;
    has(&machine.ok_with("apply -f -", &DEPLOYMENT.replace("a:1", "a:2")).await, &["configured"]);
    let object = machine.yaml("deployment/web").await;
    let images: Vec<&Value> = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("containers")
        .iter()
        .map(|one| &one["image"])
        .collect();
    assert_eq!(images, ["a:2", "b:1"]);
    has(&machine.ok("set image deployment/web two=b:3").await, &["image updated"]);
    has(&machine.ok("scale deployment web --replicas=3").await, &["scaled"]);
    has(&machine.ok("get deployment web").await, &["READY", "0/3"]);
    has(&machine.fails("rollout status deployment web --timeout=1s", "").await, &["timed out"]);
    has(&machine.ok("rollout restart deployment web").await, &["restarted"]);
    has(&machine.ok(r#"patch deployment web -p {"spec":{"template":{"spec":{"containers":[{"name":"one","image":"a:9"}]}}}}"#).await, &["patched"]);
    let object = machine.yaml("deployment/web").await;
    assert_eq!(object["spec"]["template"]["spec"]["containers"].as_array().expect("containers").len(), 2);
    assert_eq!(object["spec"]["replicas"], 3);
    let bad = DEPLOYMENT.replace("name: web", "name: bad").replace("replicas: 1", "replicas: -1");
    has(
        &machine.fails("apply -f -", &bad).await,
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );

    machine.ok_with("apply -f -", POD).await;
    has(&machine.ok("logs p").await, &["c line 0", "c line 2"]);
    has(&machine.fails("logs p -c x", "").await, &["container x is not valid for pod p"]);
    has(&machine.ok("get pods -o wide").await, &["STATUS", "NOMINATED NODE", "Pending"]);
    has(&machine.ok("get events").await, &["No resources found"]);
    has(&machine.ok("delete pod p").await, &["deleted"]);
    has(&machine.ok("delete deployment web").await, &["deleted"]);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    machine.ok_with("apply -f -", namespace).await;
    has(&machine.ok("get ns").await, &["other", "Active", "knative-serving"]);
    has(&machine.ok("delete ns other --wait=false").await, &["deleted"]);
    has(&machine.ok("get ns other").await, &["Terminating"]);
    has(&machine.fails("apply -n other -f -", POD).await, &["because it is being terminated"]);
    has(&machine.ok("api-resources").await, &["ksvc", "deployments", "customresourcedefinitions"]);
    has(&machine.ok("get crd").await, &["services.serving.knative.dev", "CREATED AT"]);
    has(&machine.ok("explain ksvc.spec").await, &["template"]);
    has(
        &machine.ok("explain deployment.spec.template.spec.containers").await,
        &["readinessProbe\t<Probe>", "image\t<string>"],
    );
    has(&machine.ok("version").await, &["Server Version: v1.34"]);
    has(&machine.ok("get --raw /readyz").await, &["ok"]);
}

/// `kubectl create KIND` and the reviews send protobuf.
#[tokio::test(flavor = "multi_thread")]
async fn imperative_commands() {
    let machine = Machine::start().await;
    has(&machine.ok("create namespace other").await, &["namespace/other created"]);
    has(&machine.ok("get serviceaccounts -n other").await, &["default"]);
    has(&machine.ok("create configmap settings --from-literal=a=b -n other").await, &["configmap/settings created"]);
    assert_eq!(machine.yaml("configmap/settings -n other").await["data"], json!({"a": "b"}));
    has(&machine.fails("create configmap settings -n other", "").await, &["configmaps \"settings\" already exists"]);
    has(&machine.fails("create configmap Settings", "").await, &["a lowercase RFC 1123 subdomain must consist of"]);
    machine.ok("create secret generic hidden --from-literal=a=b").await;
    let secret = machine.yaml("secret/hidden").await;
    assert_eq!((&secret["type"], &secret["data"]), (&json!("Opaque"), &json!({"a": "Yg=="})));
    has(
        &machine.ok("create deployment web --image=a:1 --replicas=0 --port=80").await,
        &["deployment.apps/web created"],
    );
    let deployment = machine.yaml("deployment/web").await;
    assert_eq!(deployment["spec"]["replicas"], 0);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    assert_eq!(deployment.pointer("/spec/template/metadata/labels"), Some(&json!({"app": "web"})));
    has(&machine.ok("expose deployment web").await, &["service/web exposed"]);
    has(&machine.ok("describe service web").await, &["app=web", "80/TCP"]);
    has(&machine.ok("describe deployment web").await, &["0 desired", "a:1"]);
    has(&machine.ok("run one --image=a:1").await, &["pod/one created"]);
    has(&machine.ok("describe pod one").await, &["Pending", "BestEffort", "Service Account:  default"]);
    machine.ok("create role reader --verb=get --resource=pods").await;
    machine.ok("create rolebinding reader --role=reader --serviceaccount=default:robot").await;
    has(&machine.ok("get role,rolebinding -o wide").await, &["Role/reader", "default/robot"]);

    machine.ok("create serviceaccount robot").await;
    let token = machine.ok("create token robot").await;
    let robot = machine.ok(&format!("auth whoami --token={}", token.trim())).await;
    has(&robot, &["system:serviceaccount:default:robot", "system:serviceaccounts"]);
    has(&machine.fails("create token nobody", "").await, &["serviceaccounts \"nobody\" not found"]);
    has(&machine.ok("auth can-i create pods").await, &["yes"]);
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()}});
    let answer = machine.ok_with("create -o yaml -f -", &review.to_string()).await;
    has(&answer, &["authenticated: true", "system:serviceaccount:default:robot"]);

    let typo = "apiVersion: apps/v1\nkind: Deploymant\nmetadata: {name: x}\n";
    has(&machine.fails("apply -f -", typo).await, &["no matches for kind \"Deploymant\" in version \"apps/v1\""]);

    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "one.1"}, "type": "Warning", "reason": "Failed",
        "message": "no such image", "count": 3, "lastTimestamp": "2026-11-20T10:00:00Z",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "one", "namespace": "default"}});
    machine.ok_with("create -f -", &event.to_string()).await;
    has(&machine.ok("get events").await, &["LAST SEEN", "Warning", "Failed", "pod/one", "no such image"]);
    has(&machine.ok("events --for pod/one").await, &["no such image"]);
    has(&machine.ok("get events --field-selector involvedObject.name=two").await, &["No resources found"]);
    has(&machine.ok("get events.v1.events.k8s.io -o yaml").await, &["note: no such image", "regarding:"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_everyday_list() {
    let machine = Machine::start().await;
    machine.ok_with("apply -f -", DEPLOYMENT).await;
    machine.ok_with("apply -f -", POD).await;
    machine.ok_with("apply -f -", HELLO).await;
    has(
        &machine.ok("get all").await,
        &["pod/p", "service/kubernetes", "deployment.apps/web", "service.serving.knative.dev/hello"],
    );
    let (changed, text) = machine.both("diff -f -", &HELLO.replace("World", "Moon")).await;
    has(&text, &["World", "Moon"]);
    assert!(!changed, "a difference is exit code 1");
    has(&machine.ok("set env deployment/web A=b").await, &["env updated"]);
    has(&machine.ok("get deployment web -o custom-columns=N:.metadata.name,R:.spec.replicas").await, &["web", "1"]);
    let status = r#"patch ksvc hello --subresource=status --type merge -p {"status":{"url":"http://x"}}"#;
    has(&machine.ok(status).await, &["patched"]);
    assert_eq!(machine.ok("get ksvc hello -o jsonpath={.status.url}/{.metadata.generation}").await, "http://x/1");
    has(&machine.ok("get deployment web --subresource=scale -o jsonpath={.spec.replicas}").await, &["1"]);
    has(&machine.ok_with("replace --force -f -", HELLO).await, &["deleted", "replaced"]);
    let uid = machine.ok("get pod p -o jsonpath={.metadata.uid}").await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "p.1"}, "reason": "Started", "message": "it runs", "type": "Normal",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p", "uid": uid}, "lastTimestamp": "2026-01-01T00:00:00Z"});
    machine.ok_with("create -f -", &event.to_string()).await;
    has(
        &machine.ok("get events --field-selector involvedObject.name=p").await,
        &["LAST SEEN", "Started", "pod/p", "it runs"],
    );
    has(&machine.ok("events --for pod/p").await, &["it runs"]);
    has(&machine.ok("describe pod p").await, &["Name:", "it runs"]);
    has(&machine.ok("describe deployment web").await, &["StrategyType:", "RollingUpdate"]);
    let waiting = ["wait", "--for=delete", "pod/p", "--timeout=30s"];
    let (waited, _) = tokio::join!(machine.run(&waiting, ""), machine.ok("delete pod p"));
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    has(&machine.ok_with("delete -f -", DEPLOYMENT).await, &["deployment.apps \"web\" deleted"]);
    has(&machine.ok("delete ksvc -l app=hello").await, &["\"hello\" deleted"]);
    has(&machine.ok("delete ksvc --all").await, &["No resources found"]);
    has(&machine.ok("cluster-info").await, &["Kubernetes control plane"]);
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: v}\n";
    has(&machine.ok_with("apply -f -", manifest).await, &["configmap/m created", "secret/s created"]);
    assert_eq!(machine.ok("get secret s -o jsonpath={.data.k}").await, "dg==");
    has(&machine.ok("get cm,secret").await, &["configmap/m", "secret/s", "Opaque"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_watch_follows() {
    let machine = Machine::start().await;
    machine.ok_with("apply -f -", HELLO).await;
    let mut child = machine.command(&["get", "ksvc", "-w"]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut output = child.stdout.take().expect("a pipe");
    let mut text = String::new();
    let mut more = async |text: &mut String, wanted: &str| {
        let mut buffer = [0; 4096];
        while !text.contains(wanted) {
            let read =
                tokio::time::timeout(LIMIT, output.read(&mut buffer)).await.expect("more in time").expect("reads");
            assert!(read > 0, "{wanted:?} is not in {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    more(&mut text, "hello").await;
    machine.ready("hello").await;
    more(&mut text, "True").await;
    machine.ok_with("apply -f -", &HELLO.replace("name: hello", "name: second")).await;
    more(&mut text, "second").await;
    assert_eq!(text.matches("LATESTCREATED").count(), 1, "{text}");
    child.kill().await.expect("is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let machine = Machine::start().await;
    let refused = machine.fails("get pods --token=wrong", "").await;
    has(&refused, &["You must be logged in to the server"]);
    machine.ok_with("apply --as=jane -f -", HELLO).await;
    assert_eq!(machine.yaml("ksvc/hello").await["metadata"]["annotations"]["example.com/by"], "jane");
    let jane = machine.server.client_as(Identity::new("jane", &[]));
    assert!(jane.apiserver_version().await.is_ok());
}
