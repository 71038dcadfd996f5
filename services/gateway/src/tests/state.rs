//! The states of one VPS, without sockets: what is believed, and when what is asked. Time stands still but where it is moved.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, advance};
use wire::control::{Reachable, VpsState};

use super::rig::{at, vps};
use crate::wake::{IdleTimes, Next, NotReached, Vps};

const AFTER: Duration = Duration::from_secs(10);

fn new() -> Arc<Vps> {
    let vps = Vps::new("a".parse().unwrap(), None);
    vps.configure(Some(IdleTimes { after: Some(AFTER), quiet: None }));
    vps
}

fn said(generation: u64, state: Reachable) -> VpsState {
    vps("a", generation, state)
}

fn failed() -> Reachable {
    Reachable::Failed { public: "it ended at once".into(), retry_after_ms: 4000 }
}

async fn soon(vps: &Arc<Vps>) -> tokio::task::JoinHandle<Result<u64, NotReached>> {
    let user = vps.enter();
    let vps = vps.clone();
    let task = tokio::spawn(async move {
        let place = vps.reach(|| Some("test".into()), Instant::now() + Duration::from_secs(90)).await;
        drop(user);
        place.map(|place| place.generation)
    });
    tokio::task::yield_now().await;
    task
}

fn wake(vps: &Vps) -> u64 {
    match vps.next() {
        Next::Wake { round, .. } => round,
        other => panic!("{other:?} instead of a wake"),
    }
}

/// Idle has just been decided on, at generation 1.
async fn idle() -> Arc<Vps> {
    let vps = new();
    vps.hear(said(1, at()), true);
    assert!(matches!(vps.next(), Next::SleepUntil(_)));
    advance(AFTER).await;
    assert_eq!(vps.next(), Next::Idle);
    vps
}

#[tokio::test(start_paused = true)]
async fn a_use_before_the_end_of_the_idle_time_keeps_it_up() {
    let vps = new();
    vps.hear(said(1, at()), true);
    advance(AFTER - Duration::from_secs(1)).await;
    let user = vps.enter();
    advance(AFTER).await;
    assert_eq!(vps.next(), Next::Rest);
    drop(user);
    assert_eq!(vps.next(), Next::SleepUntil(Instant::now() + AFTER));
    advance(AFTER).await;
    assert_eq!(vps.next(), Next::Idle);
    assert_eq!(vps.next(), Next::Rest);
}

#[tokio::test(start_paused = true)]
async fn an_old_at_after_idle_is_only_a_reason_to_ask() {
    let vps = idle().await;
    vps.hear(said(1, at()), false);
    assert_eq!(vps.next(), Next::Rest);
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.answered(round, said(1, Reachable::No));
    // Still the old one: nothing is sent there, it is asked again.
    vps.hear(said(1, at()), false);
    tokio::task::yield_now().await;
    assert!(!request.is_finished());
    let round = wake(&vps);
    vps.answered(round, said(1, at()));
    assert_eq!(request.await.unwrap(), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_or_a_no_that_followed_the_at_ends_the_mute() {
    let vps = idle().await;
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.answered(round, said(1, Reachable::No));
    vps.hear(said(2, at()), false);
    assert_eq!(request.await.unwrap(), Ok(2));

    let vps = idle().await;
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.hear(said(1, Reachable::No), false);
    vps.answered(round, said(1, Reachable::No));
    vps.hear(said(1, at()), false);
    assert_eq!(request.await.unwrap(), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn an_old_failure_does_not_answer_a_new_wake() {
    let vps = new();
    vps.hear(said(3, failed()), true);
    let refused = soon(&vps).await.await.unwrap();
    assert!(matches!(refused, Err(NotReached::Failed { retry_after, .. }) if retry_after == Duration::from_secs(4)));
    advance(Duration::from_secs(5)).await;
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.hear(said(3, failed()), false);
    vps.answered(round, said(4, Reachable::No));
    tokio::task::yield_now().await;
    assert!(!request.is_finished());
    vps.hear(said(4, failed()), false);
    assert!(matches!(request.await.unwrap(), Err(NotReached::Failed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_failure_heard_before_the_answer_counts() {
    let vps = new();
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.hear(said(7, failed()), false);
    vps.answered(round, said(7, Reachable::No));
    assert!(matches!(request.await.unwrap(), Err(NotReached::Failed { .. })));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_start_that_was_stopped_asks_again() {
    for before in [false, true] {
        let vps = new();
        let request = soon(&vps).await;
        let round = wake(&vps);
        if before {
            vps.hear(said(2, Reachable::No), false);
        }
        vps.answered(round, said(1, Reachable::No));
        vps.hear(said(if before { 2 } else { 1 }, Reachable::No), false);
        if !before {
            assert_eq!(vps.next(), Next::Rest);
            vps.hear(said(2, Reachable::No), false);
        }
        let round = wake(&vps);
        vps.answered(round, said(2, Reachable::No));
        vps.hear(said(3, at()), false);
        assert_eq!(request.await.unwrap(), Ok(3));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_round_is_not_believed() {
    let vps = new();
    let request = soon(&vps).await;
    let old = wake(&vps);
    vps.hear(said(1, at()), false);
    assert_eq!(request.await.unwrap(), Ok(1));
    vps.hear(said(1, Reachable::No), false);
    let request = soon(&vps).await;
    vps.answered(old, said(1, at()));
    tokio::task::yield_now().await;
    assert!(!request.is_finished());
    request.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_asks_again_after_a_pause() {
    let vps = new();
    vps.hear(said(1, at()), true);
    let user = vps.enter();
    let deadline = Instant::now() + Duration::from_secs(90);
    let place = vps.reach(|| Some("test".into()), deadline).await.unwrap();
    vps.lost(place);
    let Next::SleepUntil(at_time) = vps.next() else { panic!("no pause") };
    // What others say of the same generation meanwhile does not shorten it.
    vps.hear(said(1, at()), false);
    assert_eq!(vps.next(), Next::SleepUntil(at_time));
    advance(at_time - Instant::now()).await;
    let round = wake(&vps);
    vps.answered(round, said(1, at()));
    vps.lost(vps.reach(|| Some("test".into()), deadline).await.unwrap());
    assert!(matches!(vps.next(), Next::SleepUntil(later) if later - Instant::now() > Duration::from_millis(20)));
    drop(user);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_everybody_left_is_asked_anew() {
    let vps = new();
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.answered(round, said(1, Reachable::No));
    assert_eq!(request.await.unwrap(), Err(NotReached::Deadline));
    let request = soon(&vps).await;
    wake(&vps);
    request.abort();
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_repeats_a_wake_that_may_be_forgotten() {
    let vps = new();
    let request = soon(&vps).await;
    let round = wake(&vps);
    vps.answered(round, said(1, Reachable::No));
    vps.hear(said(1, Reachable::No), false);
    assert_eq!(vps.next(), Next::Rest);
    vps.hear(said(1, Reachable::No), true);
    wake(&vps);
    request.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_nobody_answered_is_said_again_unless_it_is_needed() {
    let vps = idle().await;
    vps.call_again(&Next::Idle);
    let Next::SleepUntil(again) = vps.next() else { panic!("not said again") };
    advance(again - Instant::now()).await;
    assert_eq!(vps.next(), Next::Idle);
    vps.call_again(&Next::Idle);
    let request = soon(&vps).await;
    wake(&vps);
    assert_eq!(vps.next(), Next::Rest);
    request.abort();
}
