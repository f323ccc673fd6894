//! `charts/kourier` against the contract: the templates hold nothing but values, so that rendering them here is
//! replacing those, and leaving out files that a value asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/kourier")
}

fn parse(text: &str) -> Vec<Value> {
    let parts = text.split("\n---\n").filter(|part| !part.trim().is_empty());
    parts.map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}: {part}"))).collect()
}

fn render() -> Vec<Value> {
    render_with(|_| {})
}

/// With other values than the chart's own.
fn render_with(change: impl Fn(&mut Value)) -> Vec<Value> {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let mut values = parse(&read(chart().join("values.yaml"))).remove(0);
    change(&mut values);
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(chart().join("templates")).unwrap() {
        let mut text = read(entry.unwrap().path());
        // A whole file may depend on a value.
        if let Some(rest) = text.strip_prefix("{{- if .Values.") {
            let (path, body) = rest.split_once(" }}").unwrap();
            let wanted = values.pointer(&format!("/{}", path.replace('.', "/"))) == Some(&Value::Bool(true));
            text = if wanted { body.trim_end().strip_suffix("{{- end }}").unwrap().to_owned() } else { String::new() };
        }
        while let Some(start) = text.find("{{") {
            let end = start + text[start..].find("}}").unwrap() + 2;
            let path = text[start + 2..end - 2].trim().to_owned();
            let value = match path.strip_prefix(".Values.") {
                Some(path) => {
                    let value = values.pointer(&format!("/{}", path.replace('.', "/")));
                    let value = value.unwrap_or_else(|| panic!("values.yaml has no {path}"));
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                }
                None if path == ".Chart.AppVersion" => "0.1.0".to_owned(),
                None => panic!("only values in templates: {path}"),
            };
            text.replace_range(start..end, &value);
        }
        objects.extend(parse(&text));
    }
    objects
}

fn find<'a>(objects: &'a [Value], kind: &str, namespace: &str, name: &str) -> &'a Value {
    let same = |object: &&Value| {
        let metadata = &object["metadata"];
        object["kind"] == kind && metadata["name"] == name && metadata["namespace"].as_str().unwrap_or("") == namespace
    };
    objects.iter().find(same).unwrap_or_else(|| panic!("no {kind} {namespace}/{name}"))
}

fn ports(service: &Value) -> Vec<(&str, i64, i64)> {
    let ports = service["spec"]["ports"].as_array().unwrap().iter();
    ports
        .map(|p| (p["name"].as_str().unwrap(), p["port"].as_i64().unwrap(), p["targetPort"].as_i64().unwrap()))
        .collect()
}

#[test]
fn objects_ports_and_probes_are_those_of_the_contract() {
    let objects = render();
    let (system, gateway) = ("knative-serving", "kourier-system");
    assert_eq!(objects.len(), 13);
    find(&objects, "Namespace", "", gateway);
    find(&objects, "ServiceAccount", system, "net-kourier");
    find(&objects, "ClusterRoleBinding", "", "net-kourier");
    find(&objects, "HorizontalPodAutoscaler", gateway, "3scale-kourier-gateway");
    find(&objects, "PodDisruptionBudget", gateway, "3scale-kourier-gateway-pdb");
    let config = find(&objects, "ConfigMap", system, "config-kourier");
    assert_eq!(config["data"].as_object().unwrap().len(), 1, "only an example");
    let kourier = find(&objects, "Service", gateway, "kourier");
    assert_eq!(ports(kourier), [("http2", 80, 8080), ("https", 443, 8443)]);
    assert_eq!(kourier["spec"]["type"], "LoadBalancer");
    let internal = find(&objects, "Service", gateway, "kourier-internal");
    assert_eq!(ports(internal), [("http2", 80, 8081), ("https", 443, 8444)]);
    let controller = find(&objects, "Service", system, "net-kourier-controller");
    assert_eq!(ports(controller), [("grpc-xds", 18000, 18000), ("http-metrics", 9090, 9090)]);

    let controller = find(&objects, "Deployment", system, "net-kourier-controller");
    let container = &controller["spec"]["template"]["spec"]["containers"][0];
    let probe = |name: &str, failures: i64| {
        let probe = &container[name];
        assert_eq!((&probe["grpc"]["port"], &probe["periodSeconds"]), (&18000.into(), &10.into()), "{name}");
        assert_eq!(probe["failureThreshold"], failures, "{name}");
    };
    assert_eq!(container["name"], "controller");
    probe("readinessProbe", 3);
    probe("livenessProbe", 6);
    let start = &container["startupProbe"];
    let patience = start["periodSeconds"].as_i64().unwrap() * start["failureThreshold"].as_i64().unwrap();
    assert!(patience >= 300, "nobody is killed for reading a large cluster");
    let environment: BTreeMap<&str, &str> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap_or("from a field")))
        .collect();
    for (name, value) in [
        ("CERTS_SECRET_NAMESPACE", ""),
        ("CERTS_SECRET_NAME", ""),
        ("SYSTEM_NAMESPACE", "from a field"),
        ("KOURIER_GATEWAY_NAMESPACE", gateway),
        ("ENABLE_SECRET_INFORMER_FILTERING_BY_CERT_UID", "false"),
        ("KOURIER_GATEWAYS", ""),
        ("KOURIER_CERTIFICATES", "chains"),
        ("KUBE_API_BURST", "200"),
        ("KUBE_API_QPS", "200"),
    ] {
        assert_eq!(environment.get(name), Some(&value), "{name}");
    }
    let security = &container["securityContext"];
    assert_eq!((&security["runAsNonRoot"], &security["readOnlyRootFilesystem"]), (&true.into(), &true.into()));
    for deployment in ["net-kourier-controller", "3scale-kourier-gateway"] {
        let namespace = if deployment.starts_with("net") { system } else { gateway };
        let spec = &find(&objects, "Deployment", namespace, deployment)["spec"];
        assert_eq!(spec["template"]["metadata"]["labels"]["app"], deployment);
        assert_eq!(spec["selector"]["matchLabels"]["app"], deployment);
        let rolling = &spec["strategy"]["rollingUpdate"];
        assert_eq!((&rolling["maxUnavailable"], &rolling["maxSurge"]), (&0.into(), &"100%".into()));
    }
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["networking.knative.dev/ingress-provider"], "kourier", "{object}");
        assert_eq!(labels["app.kubernetes.io/component"], "net-kourier", "{object}");
    }
    let autoscaler = &find(&objects, "HorizontalPodAutoscaler", gateway, "3scale-kourier-gateway")["spec"];
    assert_eq!((&autoscaler["minReplicas"], &autoscaler["maxReplicas"]), (&1.into(), &10.into()));
    let deployment = find(&objects, "Deployment", gateway, "3scale-kourier-gateway");
    assert!(deployment["spec"]["replicas"].is_null(), "the autoscaler decides");
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["networking.knative.dev/poke"], "v0.26");
    assert_eq!(template["spec"]["containers"][0]["command"], json!(["/usr/local/bin/envoy"]));
    assert_eq!(
        template["spec"]["containers"][0]["args"],
        json!([
            "--base-id 1",
            "-c /tmp/config/envoy-bootstrap.yaml",
            "--log-level info",
            "--drain-time-s $(DRAIN_TIME_SECONDS)",
            "--drain-strategy immediate"
        ])
    );
    let pod = &find(&objects, "Deployment", gateway, "3scale-kourier-gateway")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let names: Vec<(&str, i64)> = container["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_i64().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            ("http2-external", 8080),
            ("http2-internal", 8081),
            ("https-external", 8443),
            ("http-probe", 8090),
            ("https-probe", 9443),
            ("metrics", 9000)
        ]
    );
    for probe in ["readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&"/ready".into(), &8081.into()));
        assert_eq!(get["httpHeaders"][0]["value"], "internalkourier");
    }
    let drain = container["lifecycle"]["preStop"]["exec"]["command"][2].as_str().unwrap();
    assert!(drain.starts_with("curl -X POST http://localhost:9901/drain_listeners?graceful"), "{drain}");
    assert!(drain.ends_with("; sleep $DRAIN_TIME_SECONDS"), "{drain}");
    let seconds: i64 = container["env"][0]["value"].as_str().unwrap().parse().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_i64().unwrap() > seconds);
}

#[test]
fn the_controller_may_do_what_it_does_and_no_more() {
    let objects = render();
    let rules = find(&objects, "ClusterRole", "", "net-kourier")["rules"].as_array().unwrap().clone();
    let verbs = |resource: &str| -> Vec<String> {
        let rule = rules.iter().find(|rule| rule["resources"].as_array().unwrap().contains(&resource.into()));
        serde_json::from_value(rule.unwrap()["verbs"].clone()).unwrap()
    };
    let all: BTreeSet<String> = rules
        .iter()
        .flat_map(|rule| serde_json::from_value::<Vec<String>>(rule["resources"].clone()).unwrap())
        .collect();
    let granted = [
        "configmaps",
        "endpointslices",
        "events",
        "ingresses",
        "ingresses/status",
        "leases",
        "pods",
        "secrets",
        "services",
    ];
    assert_eq!(all, granted.map(str::to_owned).into(), "no more than upstream");
    assert_eq!(verbs("events"), ["create", "update", "patch"]);
    assert_eq!(verbs("ingresses/status"), ["update"]);
    assert_eq!(verbs("ingresses"), ["get", "list", "watch", "patch"]);
    assert_eq!(verbs("secrets"), ["get", "list", "watch"]);
    assert!(verbs("leases").contains(&"create".to_owned()));
}

#[test]
fn the_port_with_the_keys_can_be_closed_to_strangers() {
    assert!(render().iter().all(|object| object["kind"] != "NetworkPolicy"), "only if asked for");
    let objects = render_with(|values| values["controller"]["networkPolicy"] = json!(true));
    let policy = &find(&objects, "NetworkPolicy", "knative-serving", "net-kourier-controller")["spec"];
    assert_eq!(policy["podSelector"]["matchLabels"]["app"], "net-kourier-controller");
    let rule = &policy["ingress"][0];
    assert_eq!(rule["ports"][0]["port"], 18000);
    let namespace = &rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
    assert_eq!(namespace, "kourier-system");
}

#[test]
fn one_more_release_is_one_more_fleet() {
    let objects = render_with(|values| {
        values["controller"]["enabled"] = json!(false);
        values["createNamespace"] = json!(false);
        for (name, value) in [
            ("name", "inside-gateway"),
            ("nodeId", "inside-gateway"),
            ("bootstrap", "inside-bootstrap"),
            ("externalService", "kourier-inside-http"),
            ("internalService", "kourier-inside"),
        ] {
            values["gateway"][name] = json!(value);
        }
    });
    let name = |object: &Value| (object["kind"].as_str().unwrap().to_owned(), object["metadata"]["name"].to_string());
    let ours: BTreeSet<_> = objects.iter().map(name).collect();
    let first: BTreeSet<_> = render().iter().map(name).collect();
    assert!(ours.is_disjoint(&first), "two releases share no object: {ours:?}");
    assert_eq!(ours.len(), 6);
    let namespace = "kourier-system";
    let template = &find(&objects, "Deployment", namespace, "inside-gateway")["spec"]["template"];
    let volume = &template["spec"]["volumes"][0]["configMap"]["name"];
    let map = find(&objects, "ConfigMap", namespace, volume.as_str().unwrap());
    let bootstrap = parse(map["data"]["envoy-bootstrap.yaml"].as_str().unwrap()).remove(0);
    assert_eq!(bootstrap["node"]["id"], "inside-gateway");
    for service in ["kourier-inside", "kourier-inside-http"] {
        let selector = &find(&objects, "Service", namespace, service)["spec"]["selector"]["app"];
        assert_eq!(*selector, template["metadata"]["labels"]["app"]);
    }
    let scaled = &find(&objects, "HorizontalPodAutoscaler", namespace, "inside-gateway")["spec"]["scaleTargetRef"];
    assert_eq!(scaled["name"], "inside-gateway");
    find(&objects, "PodDisruptionBudget", namespace, "inside-gateway-pdb");

    // What the values tell to write there is what the controller reads.
    let gateways = "[{name: inside, node: {id: inside-gateway}, visibility: ClusterLocal, \
                    internalService: kourier-inside, externalService: kourier-inside-http}]";
    let objects = render_with(|values| values["controller"]["gateways"] = json!(gateways));
    let controller = find(&objects, "Deployment", "knative-serving", "net-kourier-controller");
    let environment = controller["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let written = environment.iter().find(|variable| variable["name"] == "KOURIER_GATEWAYS").unwrap();
    ingress::Fleets::parse(written["value"].as_str().unwrap()).unwrap();
}

#[test]
fn the_bootstrap_leads_to_the_controller() {
    let objects = render();
    let map = find(&objects, "ConfigMap", "kourier-system", "kourier-bootstrap");
    let bootstrap = parse(map["data"]["envoy-bootstrap.yaml"].as_str().unwrap()).remove(0);
    assert_eq!(bootstrap["node"]["id"], "3scale-kourier-gateway");
    assert_eq!(bootstrap["dynamic_resources"]["ads_config"]["api_type"], "DELTA_GRPC");
    assert!(bootstrap.to_string().contains("net-kourier-controller.knative-serving"));
}
