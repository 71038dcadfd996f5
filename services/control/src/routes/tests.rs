use super::*;
use crate::fixtures::spec;

fn name(text: &str) -> VpsName {
    text.parse().unwrap()
}

fn address() -> Option<IpAddr> {
    Some("10.80.0.17".parse().unwrap())
}

fn routes() -> Routes {
    let routes = Routes::default();
    let specs = BTreeMap::from([(name("a"), spec("acme", &[("http://a.example", 80)]))]);
    routes.set_table(table(&specs), Vec::new(), BTreeSet::new());
    routes.set_state(&name("a"), 1, Reach::No, None);
    routes
}

#[tokio::test]
async fn the_first_update_says_everything_and_the_next_only_news() {
    let routes = routes();
    routes.set_state(&name("not-routed"), 1, Reach::No, None);
    let mut follower = routes.follow();
    let first = follower.next().await;
    assert_eq!(first.table.unwrap().len(), 1);
    assert_eq!(first.states.len(), 1);
    routes.set_state(&name("a"), 2, Reach::Yes, address());
    let second = follower.next().await;
    assert!(second.table.is_none());
    assert_eq!(second.states[0].state, Reachable::At(address().unwrap()));
}

#[tokio::test]
async fn an_empty_house_is_said_once() {
    let routes = Routes::default();
    let mut follower = routes.follow();
    assert!(follower.next().await.table.unwrap().is_empty());
    let more = tokio::time::timeout(Duration::from_millis(20), follower.next()).await;
    assert!(more.is_err());
}

#[tokio::test]
async fn a_slow_follower_gets_the_last_state_not_a_queue() {
    let routes = routes();
    let mut follower = routes.follow();
    follower.next().await;
    for generation in 2..1000 {
        routes.set_state(&name("a"), generation, Reach::No, None);
    }
    let update = follower.next().await;
    assert_eq!(update.states.iter().map(|s| s.generation).collect::<Vec<_>>(), [999]);
}

#[tokio::test]
async fn a_vps_that_gets_its_first_route_brings_its_state() {
    let routes = Routes::default();
    routes.set_state(&name("a"), 5, Reach::Yes, address());
    let mut follower = routes.follow();
    follower.next().await;
    routes.set_table(
        table(&BTreeMap::from([(name("a"), spec("acme", &[("tcp://*:90", 9)]))])),
        Vec::new(),
        BTreeSet::new(),
    );
    let update = follower.next().await;
    assert_eq!((update.table.unwrap().len(), update.states[0].generation), (1, 5));
}

#[tokio::test]
async fn a_stop_waits_until_every_follower_was_told() {
    let routes = routes();
    let mut follower = routes.follow();
    follower.next().await;
    follower.sent();
    let version = routes.set_state(&name("a"), 2, Reach::No, None);
    let long = Duration::from_secs(60);
    let early = tokio::time::timeout(Duration::from_millis(20), routes.flushed(version, long)).await;
    assert!(early.is_err(), "nobody has been told yet");
    let told = async {
        follower.next().await;
        follower.sent();
    };
    tokio::join!(routes.flushed(version, long), told);
    // One who left holds up nobody.
    let version = routes.set_state(&name("a"), 3, Reach::No, None);
    drop(follower);
    routes.flushed(version, long).await;
}

#[test]
fn failures_say_how_long_to_wait() {
    let routes = routes();
    routes.set_state(&name("a"), 2, Reach::Failed("it ran out of memory", now_ms() + 60_000), None);
    let Reachable::Failed { public, retry_after_ms } = routes.state(&name("a")).unwrap().state else { panic!() };
    assert_eq!(public, "it ran out of memory");
    assert!((59_000..=60_000).contains(&retry_after_ms));
}
