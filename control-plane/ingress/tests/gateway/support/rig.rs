//! A gateway and its control plane on free ports of this machine.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use ingress::{
    Admin, Bootstrap, Options,
    world::{Pending, World},
};
use parking_lot::Mutex;
use tokio::{process::Child, task::JoinHandle};
use xds::{Server, Xds};

use super::{Answer, Request, Traffic, envoy, free_ports, objects::Store, send, spawn};

pub(crate) struct Rig {
    pub(crate) external: SocketAddr,
    pub(crate) internal: SocketAddr,
    pub(crate) probe: SocketAddr,
    pub(crate) external_tls: SocketAddr,
    pub(crate) internal_tls: SocketAddr,
    pub(crate) probe_tls: SocketAddr,
    admin: SocketAddr,
    pub(super) objects: Store,
    pub(super) options: Options,
    pub(super) control: Mutex<Control>,
    program: PathBuf,
    bootstrap: Bootstrap,
    // In this order: a gateway ends before its files go.
    gateways: Vec<(Child, tempfile::TempDir)>,
}

pub(super) struct Control {
    xds: Xds,
    pub(super) world: World<Store>,
    events: tokio::sync::mpsc::UnboundedReceiver<xds::Event>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

const DEADLINE: Duration = Duration::from_secs(60);

// === impl Rig ===

impl Rig {
    /// `None`, with a message, when there is no Envoy on this machine.
    pub(crate) async fn start(state_of_the_world: bool) -> Option<Self> {
        Self::start_with(state_of_the_world, |_| {}).await
    }

    /// With a gateway that is started in another way.
    pub(crate) async fn start_with(state_of_the_world: bool, change: impl FnOnce(&mut Bootstrap)) -> Option<Self> {
        Self::start_both_with(state_of_the_world, |_| {}, change).await
    }

    /// With a control plane that is started in another way.
    pub(crate) async fn start_control_plane_with(change: impl FnOnce(&mut Options)) -> Option<Self> {
        Self::start_both_with(false, change, |_| {}).await
    }

    async fn start_both_with(
        state_of_the_world: bool,
        change_options: impl FnOnce(&mut Options),
        change: impl FnOnce(&mut Bootstrap),
    ) -> Option<Self> {
        let Some(program) = envoy() else {
            eprintln!("skipped: no Envoy; name one in ENVOY or put it on PATH");
            return None;
        };
        let [xds, external, internal, probe, admin, external_tls, internal_tls, probe_tls] = free_ports().await;
        let options = Options {
            xds_listen: xds,
            external_listen: vec![external],
            internal_listen: vec![internal],
            itself: Some(internal),
            probe_listen: vec![probe],
            external_tls_listen: vec![external_tls],
            internal_tls_listen: vec![internal_tls],
            probe_tls_listen: vec![probe_tls],
            ..Options::default()
        };
        let mut options = options;
        options.settings.access_log = false;
        change_options(&mut options);
        let objects = Store::default();
        let control = Control::start(&objects, &options).await;
        let mut bootstrap = Bootstrap { state_of_the_world, concurrency: 1, ..Bootstrap::new(xds, Admin::Tcp(admin)) };
        change(&mut bootstrap);
        let gateways = vec![spawn(&program, &bootstrap)];
        let control = Mutex::new(control);
        let rig = Rig {
            external,
            internal,
            probe,
            external_tls,
            internal_tls,
            probe_tls,
            admin,
            objects,
            options,
            control,
            program,
            bootstrap,
            gateways,
        };
        rig.settle().await;
        rig.until_ready().await;
        Some(rig)
    }

    /// Until Kubernetes would send requests to the gateway.
    pub(crate) async fn until_ready(&self) {
        let ready = Request { path: "/ready", ..Request::to("internalkourier") };
        self.until("the gateway", async || self.try_send(self.internal, &ready).await.is_ok_and(|a| a.status == 200))
            .await;
    }

    /// Without any warning.
    pub(crate) async fn kill_gateway(&mut self) {
        let (mut process, _files) = self.gateways.remove(0);
        process.kill().await.unwrap();
    }

    /// As Kubernetes does it after the hook.
    pub(crate) async fn end_gateway(&mut self) {
        let (mut process, _files) = self.gateways.remove(0);
        let id = process.id().expect("it runs").to_string();
        let sent = tokio::process::Command::new("kill").args(["-TERM", &id]).status().await.unwrap();
        assert!(sent.success());
        tokio::time::timeout(DEADLINE, process.wait()).await.expect("it ends").unwrap();
    }

    pub(crate) fn admin_port(&self) -> u16 {
        self.admin.port()
    }

    /// The first one, after it was killed.
    pub(crate) fn start_gateway(&mut self) {
        self.gateways.push(spawn(&self.program, &self.bootstrap));
    }

    /// One more, on the same ports: the kernel spreads connections over both.
    pub(crate) async fn another_gateway(&mut self) {
        let [admin] = free_ports().await;
        let bootstrap = Bootstrap { admin: Admin::Tcp(admin), ..self.bootstrap.clone() };
        self.gateways.push(spawn(&self.program, &bootstrap));
        let ready = Request { path: "/ready", ..Request::to("admin") };
        self.until("another gateway", async || send(admin, &ready).await.is_ok_and(|answer| answer.status == 200))
            .await;
    }

    pub(crate) fn xds(&self) -> Xds {
        self.control.lock().xds.clone()
    }

    /// Until everything is acknowledged; the Ingress is then Ready.
    pub(crate) async fn ready(&self, name: &str) {
        self.settle().await;
        let ready = async || {
            let pending = self.pending(name);
            assert!(matches!(pending, Pending::Nothing | Pending::Gateways { .. }), "{name} is not Ready: {pending:?}");
            pending == Pending::Nothing
        };
        self.until("an Ingress to be Ready", ready).await;
    }

    /// What the status of an Ingress would say.
    pub(crate) fn pending(&self, name: &str) -> Pending {
        let key = ObjectKey::new("default", name);
        let generation = self.objects.0.lock().ingresses[&key].metadata.generation.unwrap();
        let control = self.control.lock();
        let settled = *control.xds.settled().borrow();
        control.world.pending(&key, generation, settled)
    }

    /// Until every gateway has acknowledged or refused everything.
    pub(crate) async fn settle(&self) {
        let xds = self.xds();
        let revision = xds.publish(Default::default());
        let mut settled = xds.settled();
        let done = settled.wait_for(|settled| settled.gateways > 0 && settled.revision >= revision);
        if tokio::time::timeout(DEADLINE, done).await.is_err() {
            panic!("revision {revision} is not acknowledged: {:?} {:#?}", xds.settled().borrow(), xds.describe());
        }
        let mut control = self.control.lock();
        while let Ok(event) = control.events.try_recv() {
            control.world.note(&event);
        }
    }

    /// How many resources the gateway refused, as far as it is known.
    pub(crate) fn refused_resources(&self) -> usize {
        let mut control = self.control.lock();
        while let Ok(event) = control.events.try_recv() {
            control.world.note(&event);
        }
        control.world.figures().1
    }

    /// What the status of an Ingress would say about a refusal.
    pub(crate) fn refused(&self, name: &str) -> String {
        match self.pending(name) {
            Pending::Refused(message) => message,
            Pending::Nothing => String::new(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The control plane ends and starts with nothing but the objects.
    pub(crate) async fn restart_control_plane(&mut self) {
        let control = self.control.get_mut();
        drop(control.stop.take());
        (&mut control.server).await.unwrap();
        *control = Control::start(&self.objects, &self.options).await;
    }

    pub(crate) async fn get(&self, host: &str) -> Answer {
        self.send(&Request::to(host)).await
    }

    pub(crate) async fn send(&self, request: &Request<'_>) -> Answer {
        self.try_send(self.external, request).await.unwrap()
    }

    pub(crate) async fn internal(&self, request: &Request<'_>) -> Answer {
        self.try_send(self.internal, request).await.unwrap()
    }

    pub(crate) async fn try_send(&self, to: SocketAddr, request: &Request<'_>) -> Result<Answer, String> {
        send(to, request).await
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        let answer = send(self.admin, &Request { path, ..Request::to("admin") }).await.unwrap();
        answer.body().to_owned()
    }

    /// The same for answers that are JSON.
    pub(crate) async fn admin_raw(&self, path: &str) -> String {
        send(self.admin, &Request { path, ..Request::to("admin") }).await.unwrap().raw()
    }

    /// How often Envoy took a cluster, listener or route update.
    pub(crate) async fn updates(&self) -> [u64; 3] {
        let stats = self.admin("/stats").await;
        let sum = |part: &str, end: &str| -> u64 {
            let lines = stats.lines().filter_map(|line| line.split_once(": "));
            lines
                .filter(|(name, _)| name.contains(part) && name.ends_with(end))
                .filter_map(|(_, n)| n.parse::<u64>().ok())
                .sum()
        };
        [
            sum("cluster_manager.cds.", "update_success"),
            sum("listener_manager.lds.", "update_success"),
            sum(".rds.", "update_success"),
        ]
    }

    /// Bytes that Envoy read from its control plane.
    pub(crate) async fn received(&self) -> u64 {
        let stats = self.admin("/stats?filter=xds_cluster.upstream_cx_rx_bytes_total").await;
        stats.trim().rsplit_once(": ").and_then(|(_, bytes)| bytes.parse().ok()).expect("Envoy counts them")
    }

    /// How often Envoy refused an update.
    pub(crate) async fn rejections(&self) -> u64 {
        let stats = self.admin("/stats?filter=update_rejected").await;
        stats.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok()).sum()
    }

    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let wait = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    /// Requests without pause, until stopped.
    pub(crate) fn traffic(&self, host: &'static str) -> Traffic {
        Traffic::start(self.external, host, false)
    }

    /// The same from somebody who asks again when there was no answer.
    pub(crate) fn patient_traffic(&self, host: &'static str) -> Traffic {
        Traffic::start(self.external, host, true)
    }
}

// === impl Control ===

impl Control {
    async fn start(objects: &Store, options: &Options) -> Self {
        let (xds, events) = Xds::new();
        let mut world = World::new(objects.clone(), xds.clone(), options);
        let ingresses: Vec<Ingress> = objects.0.lock().ingresses.values().cloned().collect();
        world.together(|world| {
            for ingress in &ingresses {
                world.apply(ingress);
            }
        });
        let server = Server::bind(options.xds_listen).await.unwrap();
        let serving = xds.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(async move {
            server.run(serving, async move { drop::<Result<(), _>>(stopped.await) }).await.unwrap();
        });
        Control { xds, world, events, stop: Some(stop), server }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}
