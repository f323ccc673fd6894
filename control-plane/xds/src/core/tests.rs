//! The state machine against model gateways that behave as Envoy does, under random changes, refusals, reorderings
//! between types, reconnects and restarts of the control plane.

mod client;
mod publisher;

use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

use self::{client::Client, publisher::Publisher};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// A host of a table with these clusters; refused by gateways if poisoned.
    Host {
        host: usize,
        table: usize,
        clusters: Vec<usize>,
        poison: bool,
    },
    RemoveHost {
        host: usize,
    },
    /// The cluster itself changes.
    Cluster {
        cluster: usize,
        poison: bool,
    },
    /// Its addresses change.
    Endpoints {
        cluster: usize,
    },
    /// Some messages travel; responses may overtake requests.
    Exchange {
        client: usize,
        messages: usize,
        hears: bool,
    },
    /// The requests of the new stream arrive in this order, that for clusters first.
    Reconnect {
        client: usize,
        order: Vec<usize>,
    },
    RestartServer,
}

fn step() -> impl Strategy<Value = Step> {
    let poison = || prop::bool::weighted(0.25);
    prop_oneof![
        4 => (0..5usize, 0..2usize, vec(0..4usize, 1..3), poison())
            .prop_map(|(host, table, clusters, poison)| Step::Host { host, table, clusters, poison }),
        2 => (0..5usize).prop_map(|host| Step::RemoveHost { host }),
        2 => (0..4usize, poison()).prop_map(|(cluster, poison)| Step::Cluster { cluster, poison }),
        3 => (0..4usize).prop_map(|cluster| Step::Endpoints { cluster }),
        6 => (0..3usize, 1..8usize, any::<bool>())
            .prop_map(|(client, messages, hears)| Step::Exchange { client, messages, hears }),
        1 => (0..3usize, vec(0..4usize, 3)).prop_map(|(client, order)| Step::Reconnect { client, order }),
        1 => Just(Step::RestartServer),
    ]
}

fn run(steps: &[Step], mut clients: [Client; 3]) {
    let mut publisher = Publisher::new();
    for client in &mut clients {
        client.connect(&mut publisher.core);
    }
    for step in steps {
        match step {
            Step::Host { host, table, clusters, poison } => publisher.host(*host, *table, clusters, *poison),
            Step::RemoveHost { host } => publisher.remove_host(*host),
            Step::Cluster { cluster, poison } => publisher.cluster(*cluster, *poison),
            Step::Endpoints { cluster } => publisher.endpoints(*cluster),
            Step::Exchange { client, messages, hears } => {
                for _ in 0..*messages {
                    let _heard = *hears && clients[*client].hear(&mut publisher.core);
                    publisher.check_settled(&clients);
                    clients[*client].exchange(&mut publisher.core);
                    publisher.check_settled(&clients);
                }
            }
            Step::Reconnect { client, order } => {
                clients[*client].disconnect(&mut publisher.core);
                clients[*client].connect(&mut publisher.core);
                clients[*client].reorder(&[&[0], &**order].concat());
            }
            Step::RestartServer => {
                publisher.restart();
                for client in &mut clients {
                    client.forget_stream();
                    client.connect(&mut publisher.core);
                }
            }
        }
        publisher.check_settled(&clients);
    }
    for client in &mut clients {
        let mut budget = 5_000;
        while client.exchange(&mut publisher.core) {
            budget -= 1;
            assert!(budget > 0, "the exchange never ends: {:?}", publisher.core.describe());
        }
    }
    // What one gateway answers may change what another one is to get.
    while clients.iter_mut().any(|client| client.exchange(&mut publisher.core)) {}
    for client in &clients {
        publisher.check(client);
    }
    let settled = publisher.core.settled();
    let expected = Settled { gateways: 3, revision: publisher.core.publish(Change::default()) };
    assert_eq!(settled, expected, "{:?}", publisher.core.describe());
}

/// The same cases in every run, so that a run that fails says something about a change; others at random when
/// `PROPTEST_CASES` says how many, or from `PROPTEST_RNG_SEED`.
fn exploration() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() && config.rng_seed == RngSeed::Random {
        (config.rng_seed, config.cases) = (RngSeed::Fixed(1), 1_000);
    }
    config
}

proptest! {
    #![proptest_config(exploration())]

    #[test]
    fn gateways_end_up_with_what_is_published(steps in vec(step(), 1..60)) {
        let names_culprits = Client::new(Protocol::Delta, true);
        run(&steps, [Client::new(Protocol::Delta, false), Client::new(Protocol::World, false), names_culprits]);
    }

    #[test]
    fn and_so_with_routes_by_scope(steps in vec(step(), 1..60)) {
        run(&steps, [Client::scoped(false), Client::new(Protocol::World, false), Client::scoped(true)]);
    }
}

#[test]
fn a_reconnecting_gateway_is_sent_only_what_changed() {
    for mut client in [Client::new(Protocol::Delta, false), Client::scoped(false)] {
        let mut publisher = Publisher::new();
        client.connect(&mut publisher.core);
        for host in 0..5 {
            publisher.host(host, host % 2, &[0, 1], false);
        }
        while client.exchange(&mut publisher.core) {}
        publisher.restart();
        client.forget_stream();
        client.connect(&mut publisher.core);
        let before = client.received;
        while client.exchange(&mut publisher.core) {}
        assert_eq!(client.received - before, 0, "resources were sent again");
        publisher.endpoints(0);
        while client.exchange(&mut publisher.core) {}
        assert_eq!(client.received - before, 1, "one assignment");
    }
}

#[test]
fn nothing_is_settled_before_a_reconnected_gateway_has_it_whatever_it_asks_for_first() {
    let clients =
        [|| Client::new(Protocol::Delta, false), || Client::new(Protocol::World, false), || Client::scoped(false)];
    for client in clients {
        // Every order of up to four first requests after the one for clusters, with which every gateway starts.
        for order in 0..24 {
            let order = [0, order / 6, order / 2 % 3, order % 2];
            let mut publisher = Publisher::new();
            let mut client = client();
            client.connect(&mut publisher.core);
            publisher.host(0, 0, &[0], false);
            publisher.host(1, 1, &[1], false);
            while client.exchange(&mut publisher.core) {}
            publisher.restart();
            client.forget_stream();
            client.connect(&mut publisher.core);
            client.reorder(&order);
            // One more host each time before a request arrives, with clusters that the gateway has.
            for host in 2..2 + client.requests() {
                publisher.host(host, host % 2, &[host % 2], false);
                publisher.check_settled([&client]);
                client.exchange(&mut publisher.core);
                publisher.check_settled([&client]);
                while client.hear(&mut publisher.core) {
                    publisher.check_settled([&client]);
                }
            }
            while client.exchange(&mut publisher.core) {
                publisher.check_settled([&client]);
            }
            publisher.check(&client);
            let revision = publisher.core.publish(Change::default());
            assert_eq!(publisher.core.settled(), Settled { gateways: 1, revision });
        }
    }
}

#[test]
fn a_refused_host_is_recovered_by_its_next_version() {
    let mut publisher = Publisher::new();
    let mut client = Client::new(Protocol::Delta, false);
    client.connect(&mut publisher.core);
    publisher.host(0, 0, &[0], false);
    publisher.host(1, 0, &[0], true);
    publisher.host(2, 0, &[0], false);
    while client.exchange(&mut publisher.core) {}
    let events = publisher.core.take_events();
    let [Event::Rejected { kind: Kind::VirtualHost, name, .. }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(&**name, "t0/h1");
    publisher.host(1, 0, &[0], false);
    while client.exchange(&mut publisher.core) {}
    publisher.check(&client);
    let events = publisher.core.take_events();
    assert!(matches!(events.as_slice(), [Event::Recovered { .. }]), "{events:?}");
}

#[test]
fn what_stands_in_the_place_of_a_refused_host_outlives_the_control_plane() {
    // Every order of the first requests after the one for clusters.
    for order in 0..24 {
        let order = [0, order / 6, order / 2 % 3, order % 2];
        for names_culprits in [false, true] {
            let mut publisher = Publisher::new();
            let mut client = Client::scoped(names_culprits);
            client.connect(&mut publisher.core);
            publisher.host(0, 0, &[0], false);
            publisher.host(1, 0, &[1], false);
            while client.exchange(&mut publisher.core) {}
            // It would go to another cluster.
            publisher.host(0, 0, &[2], true);
            while client.exchange(&mut publisher.core) {}
            for n in 2..5 {
                publisher.restart();
                client.forget_stream();
                client.connect(&mut publisher.core);
                client.reorder(&order);
                let served = |client: &Client| client.tables["t0"].get("h0") == Some(&vec!["c0".to_owned()]);
                while client.exchange(&mut publisher.core) {
                    assert!(served(&client), "{order:?}: {:?}", publisher.core.describe());
                }
                assert!(client.clusters.contains_key("c0") && client.endpoints.contains_key("c0"), "{order:?}");
                assert!(!client.warming.contains("c0"));
                publisher.check(&client);
                // Others go on.
                publisher.host(n, n % 2, &[1], false);
                publisher.remove_host(n - 1);
                while client.exchange(&mut publisher.core) {
                    assert!(served(&client), "{order:?}: {:?}", publisher.core.describe());
                }
                publisher.check(&client);
            }
            publisher.host(0, 0, &[1], false);
            while client.exchange(&mut publisher.core) {}
            publisher.check(&client);
            assert!(!client.clusters.contains_key("c0"), "nobody needs it any more");
        }
    }
}

/// What a stream has to remember is bounded by what there is, not by how often it changed.
#[test]
fn a_stream_that_stands_still_remembers_each_name_once() {
    let mut publisher = Publisher::new();
    let mut client = Client::scoped(false);
    client.connect(&mut publisher.core);
    for host in 0..5 {
        publisher.host(host, 0, &[host % 4], false);
    }
    for _ in 0..6 {
        client.exchange(&mut publisher.core);
    }
    let mut before = None;
    for _ in 0..3 {
        for round in 0..200 {
            publisher.host(round % 5, round % 2, &[round % 4], false);
            publisher.endpoints(round % 4);
            publisher.remove_host((round + 3) % 5);
        }
        let now = publisher.core.describe();
        assert_eq!(*before.get_or_insert_with(|| now.clone()), now);
    }
    while client.exchange(&mut publisher.core) {}
    publisher.check(&client);
}

#[test]
fn without_gateways_nothing_is_settled() {
    let mut publisher = Publisher::new();
    publisher.host(0, 0, &[0], false);
    assert_eq!(publisher.core.settled(), Settled::default());
    let id = publisher.core.open(Protocol::World);
    assert_eq!(publisher.core.settled().gateways, 0, "a stream that asks for nothing is no gateway");
    publisher.core.close(id);
}

#[test]
fn the_clusters_of_a_refused_hosts_last_good_version_stay() {
    let mut publisher = Publisher::new();
    let mut clients = [Client::new(Protocol::Delta, false), Client::new(Protocol::World, false)];
    for client in &mut clients {
        client.connect(&mut publisher.core);
    }
    publisher.host(0, 0, &[0], false);
    while clients[1].exchange(&mut publisher.core) {}
    publisher.host(0, 0, &[1], true);
    for client in &mut clients {
        while client.exchange(&mut publisher.core) {}
    }
    assert!(clients[1].clusters.contains_key("c0"));
    publisher.host(0, 0, &[1], false);
    for client in &mut clients {
        while client.exchange(&mut publisher.core) {}
        publisher.check(client);
    }
}
