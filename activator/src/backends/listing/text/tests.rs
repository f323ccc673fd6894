use fastrand::Rng;
use serde_json::{Value, json};

use super::{super::Groups, *};

/// One subset: which port, who is ready and who is not.
type Described = (u16, Vec<Value>, Vec<Value>);

fn address(random: &mut Rng) -> Value {
    let ip = format!("10.0.{}.{}", random.u8(..4), random.u8(..));
    let uid = format!("6ba7b810-9dad-11d1-80b4-{:012x}", random.u8(..3));
    let node = ["node-1", "node-2", "},{", "]", "a\"b\\", "{\"ip\":\"10.0.0.1\"}"][random.usize(..6)];
    let target = json!({"kind": "Pod", "namespace": "default", "name": format!("pod-{ip}"), "uid": uid});
    match random.u8(..10) {
        0 => json!({"ip": ip}),
        1 => json!({"ip": ip, "nodeName": node}),
        2 => json!({"ip": "nonsense", "targetRef": target}),
        _ => json!({"ip": ip, "nodeName": node, "targetRef": target}),
    }
}

/// As the API writes it: what is empty is not there.
fn written(subsets: &[Described]) -> Bytes {
    let list = |name: &str, all: &[Value]| match all {
        [] => String::new(),
        _ => format!("\"{name}\":{},", Value::from(all)),
    };
    let subset = |(port, ready, not_ready): &Described| {
        let ports = json!([{"name": "http-queueadm", "port": 8022}, {"name": "http", "port": port, "protocol": "TCP"}]);
        format!("{{{}{}\"ports\":{ports}}}", list("addresses", ready), list("notReadyAddresses", not_ready))
    };
    format!("[{}]", subsets.iter().map(subset).collect::<Vec<_>>().join(",")).into()
}

/// What JSON says that it is.
fn whole(bytes: &[u8]) -> Groups {
    let object = [b"{\"metadata\":{},\"subsets\":", bytes, b"}"].concat();
    serde_json::from_slice::<super::super::Listing<super::super::Whole>>(&object).expect("valid").groups
}

/// One ordinary change: a pod comes, goes, or is found ready or not.
fn change(random: &mut Rng, subsets: &mut [Described]) {
    let which = random.usize(..subsets.len());
    let (_, ready, not_ready) = &mut subsets[which];
    let (from, to) = if random.bool() { (ready, not_ready) } else { (not_ready, ready) };
    match random.u8(..3) {
        0 => to.insert(random.usize(..=to.len()), address(random)),
        _ if from.is_empty() => {}
        1 => drop(from.remove(random.usize(..from.len()))),
        _ => {
            let moved = from.remove(random.usize(..from.len()));
            to.insert(random.usize(..=to.len()), moved);
        }
    }
}

/// A change of any kind.
fn upset(random: &mut Rng, subsets: &mut Vec<Described>) {
    match random.u8(..7) {
        0 => subsets.push((random.u16(1..4), (0..random.usize(..80)).map(|_| address(random)).collect(), Vec::new())),
        1 if subsets.len() > 1 => drop(subsets.remove(random.usize(..subsets.len()))),
        2 => subsets[0].0 = random.u16(1..4),
        3 => random.shuffle(&mut subsets[0].1),
        4 => subsets.reverse(),
        5 => subsets[0].1.truncate(random.usize(..4)),
        _ => {
            let copy = subsets[0].1.first().cloned();
            subsets[0].1.extend(copy.clone());
            subsets[0].2.extend(copy);
        }
    }
}

/// Or another one, which is told.
fn seed(usual: u64) -> Rng {
    let given = std::env::var("LISTING_SEED").ok().map(|text| text.parse().unwrap_or_else(|_| fastrand::u64(..)));
    let seed = given.unwrap_or(usual);
    println!("to be replayed with LISTING_SEED={seed}");
    Rng::with_seed(seed)
}

#[test]
fn what_is_read_of_a_change_is_what_all_of_it_says() {
    let mut random = seed(17);
    let (mut edits, mut ordinary) = (0, 0);
    for _ in 0..60 {
        let count = random.usize(..150);
        let mut subsets = vec![(1, (0..count).map(|_| address(&mut random)).collect(), Vec::new())];
        let mut before = Arc::new(Text::read(written(&subsets), None).expect("as expected"));
        for _ in 0..60 {
            let is_ordinary = random.u8(..8) > 0;
            match is_ordinary {
                true => (0..random.usize(1..4)).for_each(|_| change(&mut random, &mut subsets)),
                false => upset(&mut random, &mut subsets),
            }
            let bytes = written(&subsets);
            let all = whole(&bytes);
            let now = Arc::new(Text::read(bytes, Some(&before)).expect("as expected"));
            assert_eq!(*now.groups(), *all.read());
            ordinary += usize::from(is_ordinary);
            edits += usize::from(is_ordinary && now.edit.is_some());
            for port in ["http", "http2"] {
                let expected = super::super::changes(&whole(&before.bytes), &all, port);
                let found = super::super::changes(&Groups::Text(before.clone()), &Groups::Text(now.clone()), port);
                assert_eq!(found, expected, "{} {}", before.bytes.escape_ascii(), now.bytes.escape_ascii());
                if let Some(read) = now.changes(&before, port) {
                    assert_eq!(read, expected);
                }
            }
            before = now;
        }
    }
    assert!(ordinary > 2000 && edits == ordinary, "{edits} of {ordinary} changes were read as such");
}

#[test]
fn of_an_ordinary_change_only_few_addresses_are_read() {
    let mut random = seed(18);
    let addresses = (0..2000_u16).map(|n| json!({"ip": format!("10.1.{}.{}", n / 250, n % 250), "nodeName": "n"}));
    let mut subsets: Vec<Described> = vec![(1, addresses.collect(), Vec::new())];
    let mut before = Arc::new(Text::read(written(&subsets), None).expect("as expected"));
    for _ in 0..50 {
        change(&mut random, &mut subsets);
        let now = Arc::new(Text::read(written(&subsets), Some(&before)).expect("as expected"));
        let edit = now.edit.as_ref().expect("an ordinary change");
        assert!(edit.gone.len() + edit.come.len() <= 2, "{edit:?}");
        before = now;
    }
}

#[test]
fn nothing_is_known_of_a_change_from_another_text() {
    let text = |ips: &[&str], before: Option<&Arc<Text>>| {
        let subsets = [(1, ips.iter().map(|ip| json!({"ip": ip})).collect(), Vec::new())];
        Arc::new(Text::read(written(&subsets), before).expect("as expected"))
    };
    let one = text(&["10.0.0.1"], None);
    let two = text(&["10.0.0.1", "10.0.0.2"], Some(&one));
    let three = text(&["10.0.0.2", "10.0.0.3"], Some(&two));
    assert!(three.changes(&one, "http").is_none() && three.changes(&two, "http").is_some());
    let changes = super::super::changes(&Groups::Text(one.clone()), &Groups::Text(three), "http");
    assert_eq!(changes.len(), 3);
    // Where the one before lay in memory may lie another by now.
    drop(one);
    let other = text(&["10.0.0.9"], None);
    assert!(two.changes(&other, "http").is_none());
}

#[test]
fn what_is_not_in_the_usual_form_is_left_to_others() {
    let usual = r#"[{"addresses":[{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}],"ports":[{"name":"http","port":80}]}]"#;
    let read = |text: &str, before| Text::read(Bytes::copy_from_slice(text.as_bytes()), before);
    let before = Arc::new(read(usual, None).expect("as expected"));
    let others = [
        usual.replace(',', ", "),
        usual.replace("\"10.0.0.2\"", "\"10.0.0.2\",\"more\":[{},{\"ip\":\"10.0.0.3\"}]"),
        usual.replace("\"10.0.0.2\"", "\"10.0.0.2\",\"targetRef\":{\"more\":1}"),
        usual.replace("{\"ip\":\"10.0.0.2\"}", "{\"hostname\":\"a\",\"ip\":\"10.0.0.2\"}"),
        usual.replace("{\"ip\":\"10.0.0.2\"}", "null"),
        usual.replace("\"10.0.0.2\"", "3"),
        usual.replace("\"ports\"", "\"more\":1,\"ports\""),
        usual.replace("80}]", "80}],\"more\":1"),
        usual.replace("\"ports\":", "\"portz\":"),
        usual.replace("2\"}]", "2\"}"),
        usual.replace("}]}]", "}]}]]"),
        usual.replace("}]}]", "}]}"),
        usual[..usual.len() - 20].to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
    ];
    for other in others {
        assert!(other != usual && read(&other, None).is_none() && read(&other, Some(&before)).is_none(), "{other}");
    }
}
