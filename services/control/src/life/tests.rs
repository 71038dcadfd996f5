use model::{
    ExitStatus, Phase,
    spec::{Idle, IdleAction, Restart},
    state::Ended,
};

use super::*;
use crate::fixtures::{spec, status};

fn life() -> Life {
    Life::new(Rules::from(&spec("acme", &[("http://a.example", 80)])), 1000, 0)
}

fn down(code: i32, asked: bool) -> Phase {
    Phase::Down { ended: Some(Ended::Exited { status: ExitStatus::Code(code), oom: false, asked }) }
}

fn wake() -> Input {
    Input::Wake("GET /".to_owned())
}

/// Without timers and what is only told.
fn effects(actions: Vec<Action>) -> Vec<Action> {
    let told = |action: &Action| {
        use Action::{Begun, Failed, Record, Stopped, Timer};
        matches!(action, Record { .. } | Begun { .. } | Failed { .. } | Stopped { .. } | Timer(..))
    };
    actions.into_iter().filter(|action| !told(action)).collect()
}

fn timer(actions: &[Action]) -> (u64, u64) {
    let found = actions.iter().rev().find_map(|action| match action {
        Action::Timer(number, after) => Some((*number, *after)),
        _ => None,
    });
    found.expect("no timer")
}

fn launch(actions: &[Action]) -> u64 {
    let found = actions.iter().find_map(|action| match action {
        Action::Launch(number) => Some(*number),
        _ => None,
    });
    found.expect("no launch")
}

/// Brings it up as run `run`.
fn up(life: &mut Life, now: u64, run: u64) {
    let number = launch(&life.step(now, wake()));
    life.step(now, Input::Launched(number, Ok(Some(run))));
    life.step(now, Input::Attached(number, Ok(())));
    life.step(now, Input::Status(status(run, Phase::Ready)));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn a_thousand_wakes_are_one_start() {
    let mut life = life();
    let number = launch(&life.step(0, wake()));
    for _ in 0..1000 {
        assert!(effects(life.step(1, wake())).is_empty());
    }
    assert_eq!(life.generation(), 1001);
    assert!(effects(life.step(2, Input::Launched(number, Ok(Some(1))))).is_empty());
    assert!(effects(life.step(3, Input::Status(status(1, Phase::Ready)))).is_empty());
    assert_eq!(life.reach(), Reach::No, "not before the link is there");
    let done = effects(life.step(31, Input::Attached(number, Ok(()))));
    assert_eq!(done, [Action::Woken { took_ms: 31, by: "GET /".to_owned() }]);
    assert_eq!(life.reach(), Reach::Yes);
}

#[test]
fn events_may_come_before_the_answer_to_start() {
    let mut life = life();
    let number = launch(&life.step(0, wake()));
    life.step(1, Input::Status(status(1, Phase::Starting)));
    life.step(2, Input::Status(status(1, Phase::Ready)));
    life.step(3, Input::Attached(number, Ok(())));
    assert_eq!(life.state(), api::State::Running);
    life.step(4, Input::Launched(number, Ok(Some(1))));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn the_end_of_an_earlier_run_is_old_news() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(1, Input::Idle);
    life.step(2, Input::Status(status(1, down(0, true))));
    up(&mut life, 3, 2);
    life.step(4, Input::Status(status(1, down(0, true))));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn a_wake_while_stopping_starts_after_the_stop() {
    let mut life = life();
    up(&mut life, 0, 1);
    assert_eq!(effects(life.step(1, Input::Idle)), [Action::Stop { grace_ms: None, thaw: false }]);
    assert_eq!(life.reach(), Reach::No);
    assert!(effects(life.step(2, wake())).is_empty());
    launch(&life.step(3, Input::Status(status(1, down(0, true)))));
    assert_eq!(life.state(), api::State::Starting);
}

#[test]
fn idle_means_what_the_spec_says_and_nothing_while_a_program_runs_inside() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(1, Input::ExecBegan);
    assert!(life.step(2, Input::Idle).is_empty());
    assert_eq!(effects(life.step(3, Input::ExecEnded)), [Action::Stop { grace_ms: None, thaw: false }]);

    let mut kept = self::life();
    up(&mut kept, 0, 1);
    kept.step(1, Input::ExecBegan);
    kept.step(2, Input::Idle);
    kept.step(3, wake());
    assert!(effects(kept.step(4, Input::ExecEnded)).is_empty(), "somebody came back");

    let mut looked_into = self::life();
    up(&mut looked_into, 0, 1);
    looked_into.step(1, Input::ExecBegan);
    looked_into.step(2, Input::Idle);
    looked_into.step(3, Input::Need("exec".into()));
    let (number, after) = timer(&looked_into.step(4, Input::ExecEnded));
    assert_eq!(after, 60_000, "the gateway does not say it twice");
    assert_eq!(effects(looked_into.step(60_004, Input::Timer(number))), [Action::Stop { grace_ms: None, thaw: false }]);

    let mut never = self::life();
    never.rules.idle = Idle::Never;
    up(&mut never, 0, 1);
    assert!(never.step(1, Input::Idle).is_empty());
}

#[test]
fn a_frozen_vps_is_thawed_by_a_wake_also_by_one_that_came_while_it_froze() {
    let mut life = life();
    life.rules.idle = Idle::After { after_ms: 1, then: IdleAction::Freeze, quiet_ms: None };
    up(&mut life, 0, 1);
    assert_eq!(effects(life.step(1, Input::Idle)), [Action::Freeze]);
    assert_eq!(life.reach(), Reach::No);
    life.step(2, Input::Done(Step::Freeze, Ok(())));
    assert_eq!(life.state(), api::State::Frozen);
    assert_eq!(effects(life.step(3, wake())), [Action::Thaw]);
    life.step(4, Input::Done(Step::Thaw, Ok(())));
    assert_eq!(life.reach(), Reach::Yes);

    life.step(5, Input::Idle);
    assert!(effects(life.step(6, wake())).is_empty());
    assert_eq!(effects(life.step(7, Input::Done(Step::Freeze, Ok(())))), [Action::Thaw]);
}

#[test]
fn a_crash_loop_backs_off_and_says_so() {
    let mut life = life();
    up(&mut life, 0, 1);
    let (mut now, mut pauses) = (1, Vec::new());
    for run in 1..=4 {
        let actions = life.step(now, Input::Status(status(run, down(1, false))));
        let (number, pause) = timer(&actions);
        pauses.push(pause);
        assert!(matches!(life.reach(), Reach::Failed(_, until) if until == now + pause));
        if run == 4 {
            assert_eq!(life.failure(now).unwrap(), "exit 1, 5th try in 800ms");
            assert!(effects(life.step(now, wake())).is_empty(), "a wake does not break the back-off");
        }
        now += pause;
        let number = launch(&life.step(now, Input::Timer(number)));
        life.step(now, Input::Launched(number, Ok(Some(run + 1))));
    }
    assert_eq!(pauses, [0, 200, 400, 800], "who asks for a server that ran well until now waits for its next start");
    assert_eq!((back_off(11), back_off(u32::MAX)), (60_000, 60_000));
}

#[test]
fn being_up_for_a_minute_ends_the_count() {
    let mut life = life();
    up(&mut life, 0, 1);
    let (number, _) = timer(&life.step(1, Input::Status(status(1, down(1, false)))));
    let number = launch(&life.step(101, Input::Timer(number)));
    life.step(101, Input::Launched(number, Ok(Some(2))));
    life.step(101, Input::Attached(number, Ok(())));
    life.step(101, Input::Status(status(2, Phase::Ready)));
    let (_, pause) = timer(&life.step(101 + STEADY_MS, Input::Status(status(2, down(1, false)))));
    assert_eq!(pause, 0);
}

#[test]
fn nobody_asking_ends_the_tries_and_a_wake_begins_anew() {
    let mut life = life();
    let mut now = 0;
    let mut actions = life.step(now, wake());
    let mut starts = 0;
    loop {
        starts += 1;
        let number = launch(&actions);
        life.step(now, Input::Launched(number, Ok(Some(starts))));
        let failed = life.step(now, Input::Status(status(starts, down(1, false))));
        let Some(Action::Timer(number, pause)) = failed.iter().find(|a| matches!(a, Action::Timer(..))).cloned() else {
            break;
        };
        now += pause;
        actions = life.step(now, Input::Timer(number));
    }
    assert_eq!(starts, 1 + u64::from(TRIES));
    let Reach::Failed(_, until) = life.reach() else { panic!("not failed") };
    assert!(effects(life.step(until - 1, wake())).is_empty());
    launch(&life.step(until, wake()));
}

#[test]
fn restart_policies_differ() {
    let end = |restart, code| {
        let mut life = life();
        life.rules.restart = restart;
        up(&mut life, 0, 1);
        let actions = life.step(1, Input::Status(status(1, down(code, false))));
        (life.state(), actions.iter().any(|action| matches!(action, Action::Timer(..))))
    };
    assert_eq!(end(Restart::OnFailure, 0), (api::State::Asleep, false));
    assert_eq!(end(Restart::OnFailure, 1), (api::State::Failed, true));
    assert_eq!(end(Restart::Always, 0), (api::State::Failed, true));
    assert_eq!(end(Restart::Never, 0), (api::State::Asleep, false));
    assert_eq!(end(Restart::Never, 1), (api::State::Failed, false));
}

#[test]
fn a_start_that_is_late_is_killed_and_failed() {
    let mut life = life();
    let actions = life.step(0, wake());
    let ((number, after), launched) = (timer(&actions), launch(&actions));
    assert_eq!(after, 30_000);
    life.step(1, Input::Launched(launched, Ok(Some(1))));
    let kill = effects(life.step(after, Input::Timer(number)));
    assert_eq!(kill[0], Action::Stop { grace_ms: Some(0), thaw: false });
    life.step(after, Input::Status(status(1, Phase::Stopping)));
    life.step(after, Input::Status(status(1, Phase::Ready)));
    assert_ne!(life.state(), api::State::Running, "too late is too late");
    life.step(after + 5, Input::Status(status(1, down(137, true))));
    assert!(life.failure(after + 5).unwrap().starts_with("not ready within 30s, since nothing listened on port 80, "));
}

#[test]
fn a_stop_during_the_launch_waits_for_its_answer() {
    let mut life = life();
    let number = launch(&life.step(0, wake()));
    assert!(effects(life.step(1, Input::Stop("root".into()))).is_empty());
    let stop = effects(life.step(2, Input::Launched(number, Ok(Some(1)))));
    assert_eq!(stop, [Action::Stop { grace_ms: None, thaw: false }]);
    life.step(3, Input::Status(status(1, down(0, true))));
    assert_eq!(life.state(), api::State::Asleep);

    let number = launch(&life.step(4, wake()));
    life.step(5, Input::Restart("root".into()));
    let failed = Failure { what: "no".into(), public: "no" };
    launch(&life.step(6, Input::Launched(number, Err(failed))));
}

#[test]
fn what_is_up_after_a_restart_of_control_is_adopted() {
    let mut ready = life();
    let actions = effects(ready.step(0, Input::Snapshot(Some(status(7, Phase::Ready)))));
    let [Action::Attach(number)] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(ready.reach(), Reach::No);
    assert!(effects(ready.step(1, Input::Attached(number, Ok(())))).is_empty(), "nobody woke it");
    assert_eq!(ready.reach(), Reach::Yes);

    let mut frozen = life();
    frozen.step(0, Input::Snapshot(Some(status(7, Phase::Frozen))));
    assert_eq!(effects(frozen.step(1, wake())), [Action::Thaw]);
}

#[test]
fn an_end_nobody_saw_shows_in_the_next_snapshot() {
    let mut life = life();
    up(&mut life, 0, 3);
    life.step(1, Input::Snapshot(None));
    assert_eq!(life.state(), api::State::Failed);
    // A host that was restarted counts from one again.
    let Reach::Failed(_, until) = life.reach() else { panic!("not failed") };
    up(&mut life, until, 1);
}

#[test]
fn a_snapshot_from_before_the_start_does_not_end_it() {
    let mut life = life();
    let number = launch(&life.step(0, wake()));
    life.step(1, Input::Snapshot(Some(status(4, down(0, true)))));
    life.step(2, Input::Launched(number, Ok(Some(5))));
    life.step(3, Input::Snapshot(Some(status(4, down(0, true)))));
    assert_eq!(life.state(), api::State::Starting);
}

#[test]
fn a_snapshot_from_before_a_freeze_is_asked_about_and_not_believed() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(1, Input::Freeze("a person".into()));
    life.step(2, Input::Done(Step::Freeze, Ok(())));
    let asked = life.step(3, Input::Snapshot(Some(status(1, Phase::Ready))));
    assert_eq!(life.state(), api::State::Frozen);
    let [Action::Look(number)] = asked[..] else { panic!("{asked:?}") };
    life.step(4, Input::Looked(number, Some(status(1, Phase::Frozen))));
    assert_eq!(life.state(), api::State::Frozen);
    // A host that truly thawed it says so when it is asked.
    life.step(5, Input::Looked(number, Some(status(1, Phase::Ready))));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn an_answer_to_an_older_look_counts_no_more() {
    let mut life = life();
    up(&mut life, 0, 1);
    let actions = life.step(1, Input::Idle);
    let actions = life.step(2, Input::Timer(timer(&actions).0));
    let look = actions.iter().find_map(|action| match action {
        Action::Look(number) => Some(*number),
        _ => None,
    });
    life.step(3, Input::Status(status(1, down(0, true))));
    up(&mut life, 4, 2);
    life.step(5, Input::Looked(look.unwrap(), Some(status(1, down(0, true)))));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn an_old_timer_does_nothing() {
    let mut life = life();
    let (number, _) = timer(&life.step(0, wake()));
    life.step(1, Input::Launched(2, Ok(Some(1))));
    up_from_starting(&mut life);
    assert!(life.step(30_000, Input::Timer(number)).is_empty());
}

fn up_from_starting(life: &mut Life) {
    let State::Starting(starting) = &life.state else { panic!("not starting") };
    let number = starting.launch;
    life.step(2, Input::Attached(number, Ok(())));
    life.step(2, Input::Status(status(1, Phase::Ready)));
    assert_eq!(life.state(), api::State::Running);
}

#[test]
fn a_person_can_start_during_back_off_and_stop_what_failed() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(1, Input::Status(status(1, down(1, false))));
    life.step(2, Input::Stop("root".into()));
    assert_eq!(life.state(), api::State::Asleep);
    up(&mut life, 3, 2);
    life.step(4, Input::Status(status(2, down(1, false))));
    launch(&life.step(5, Input::Start("root".into())));
}

/// One that no route leads to, that sleeps after a minute.
fn unrouted() -> Life {
    Life::new(Rules::from(&spec("acme", &[])), 1000, 0)
}

fn asked(actions: &[Action]) -> u64 {
    let found = actions.iter().find_map(|action| match action {
        Action::AskBusy(number) => Some(*number),
        _ => None,
    });
    found.expect("it was not asked")
}

#[test]
fn the_idle_time_of_one_without_routes_is_counted_here() {
    let mut life = unrouted();
    let number = launch(&life.step(0, wake()));
    life.step(0, Input::Launched(number, Ok(Some(1))));
    life.step(0, Input::Attached(number, Ok(())));
    let (first, after) = timer(&life.step(0, Input::Status(status(1, Phase::Ready))));
    assert_eq!(after, 60_000);
    let (second, _) = timer(&life.step(30_000, wake()));
    assert!(life.step(60_000, Input::Timer(first)).is_empty(), "somebody needed it meanwhile");
    life.step(80_000, Input::ExecBegan);
    assert!(effects(life.step(90_000, Input::Timer(second))).is_empty());
    assert_eq!(effects(life.step(95_000, Input::ExecEnded)), [Action::Stop { grace_ms: None, thaw: false }]);
}

#[test]
fn what_a_job_woke_goes_back_when_only_the_job_needed_it() {
    let run = |other: bool, routed: bool| {
        let mut life = if routed { life() } else { unrouted() };
        life.step(0, Input::ExecBegan);
        let number = launch(&life.step(0, Input::Job("job tidy".into())));
        life.step(0, Input::Launched(number, Ok(Some(1))));
        life.step(0, Input::Attached(number, Ok(())));
        life.step(0, Input::Status(status(1, Phase::Ready)));
        if other {
            life.step(1, wake());
        }
        effects(life.step(2, Input::ExecEnded))
    };
    assert_eq!(run(false, false), [Action::Stop { grace_ms: None, thaw: false }]);
    assert!(run(true, false).is_empty());
    assert!(run(false, true).is_empty(), "the gateway may have sent somebody there");
}

#[test]
fn one_that_says_it_is_busy_is_asked_again_and_not_stopped() {
    let mut life = life();
    life.rules.busy = true;
    up(&mut life, 0, 1);
    let number = asked(&life.step(1, Input::Idle));
    assert_eq!(life.reach(), Reach::Yes);
    let (again, after) = timer(&life.step(2, Input::Busy(number, Answer::Busy)));
    assert_eq!((life.state(), after), (api::State::Running, 60_000));
    assert!(life.because().contains("says that it is busy"));
    let number = asked(&life.step(60_002, Input::Timer(again)));
    let (again, _) = timer(&life.step(60_003, Input::Busy(number, Answer::Unknown("no".into()))));
    let number = asked(&life.step(120_003, Input::Timer(again)));
    assert!(effects(life.step(120_004, wake())).is_empty());
    assert!(effects(life.step(120_005, Input::Busy(number, Answer::Free))).is_empty(), "somebody came meanwhile");
    let number = asked(&life.step(180_000, Input::Idle));
    assert_eq!(
        effects(life.step(180_001, Input::Busy(number, Answer::Free))),
        [Action::Stop { grace_ms: None, thaw: false }]
    );
}

#[test]
fn one_that_waits_for_memory_starts_when_there_is_some_or_is_refused_in_time() {
    let mut life = life();
    let actions = life.step(0, wake());
    let ((deadline, _), number) = (timer(&actions), launch(&actions));
    assert!(effects(life.step(0, Input::Full(number, "waits for 1 GiB".into()))).is_empty());
    assert_eq!((life.state(), life.waits()), (api::State::Waiting, Some("waits for 1 GiB")));
    assert!(effects(life.step(1, wake())).is_empty());
    let actions = life.step(2, Input::Room);
    assert_eq!(launch(&actions), number);
    assert!(life.step(30_000, Input::Timer(deadline)).is_empty(), "its time begins anew");
    life.step(30_001, Input::Stop("root".into()));
    life.step(30_002, Input::Launched(number, Err(Failure { what: "no".into(), public: "no" })));

    let actions = life.step(40_000, wake());
    let ((deadline, _), number) = (timer(&actions), launch(&actions));
    life.step(40_000, Input::Full(number, "waits for 1 GiB".into()));
    life.step(70_000, Input::Timer(deadline));
    assert_eq!(life.reach(), Reach::Failed("this host is full", 70_000 + FULL_MS));
    assert!(life.is_refused() && life.failure(70_000).unwrap().contains("waits for 1 GiB"));

    let number = launch(&life.step(80_000, wake()));
    life.step(80_000, Input::Full(number, "waits".into()));
    life.step(80_001, Input::Stop("root".into()));
    assert_eq!(life.state(), api::State::Asleep, "there is nothing to wait for");
}

#[test]
fn only_what_was_frozen_by_itself_gives_its_memory() {
    let mut life = life();
    life.rules.idle = Idle::After { after_ms: 1, then: IdleAction::Freeze, quiet_ms: None };
    up(&mut life, 0, 1);
    life.step(1, Input::Idle);
    life.step(2, Input::Done(Step::Freeze, Ok(())));
    assert_eq!(life.can_give(12), Some(10));
    assert_eq!(effects(life.step(13, Input::Give)), [Action::Stop { grace_ms: None, thaw: true }]);
    life.step(14, Input::Status(status(1, down(0, true))));
    up(&mut life, 15, 2);
    life.step(16, Input::Freeze("root".into()));
    life.step(17, Input::Done(Step::Freeze, Ok(())));
    assert_eq!(life.can_give(100), None);
}

/// Whatever comes in whatever order: it is sent to only while running, and it never hangs in a state without a way out.
#[test]
fn no_order_of_inputs_breaks_the_laws() {
    let mut seed = 42u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let (mut life, mut now, mut generation) = (life(), 0, 0);
        let (mut timers, mut launches, mut run) = (Vec::new(), vec![0], 0);
        for _ in 0..120 {
            now += random(50);
            let failure = Failure { what: "x".into(), public: "x" };
            let input = match random(20) {
                0 | 1 => wake(),
                2 => Input::Idle,
                3 => Input::Stop("p".into()),
                4 => Input::Restart("p".into()),
                5 => Input::Freeze("p".into()),
                6 => Input::Status(status(run, Phase::Ready)),
                7 => Input::Status(status(run, down(random(2) as i32, false))),
                8 => Input::Status(status(run, Phase::Frozen)),
                9 => Input::Snapshot(Some(status(run, Phase::Ready))),
                10 => Input::Snapshot(None),
                11 => Input::Launched(launches[random(launches.len() as u64) as usize], Ok(Some(run))),
                12 => Input::Launched(launches[random(launches.len() as u64) as usize], Err(failure)),
                13 => Input::Attached(launches[random(launches.len() as u64) as usize], Ok(())),
                15 => Input::Full(launches[random(launches.len() as u64) as usize], "waits".into()),
                16 => Input::Room,
                17 => Input::Give,
                18 => Input::Job("j".into()),
                14 => Input::Done([Step::Stop, Step::Freeze, Step::Thaw][random(3) as usize], Ok(())),
                _ => timers.pop().map_or(Input::Idle, Input::Timer),
            };
            for action in life.step(now, input) {
                match action {
                    Action::Launch(number) => {
                        run += 1;
                        launches.push(number);
                    }
                    Action::Attach(number) => launches.push(number),
                    Action::Timer(number, _) => timers.push(number),
                    _ => {}
                }
            }
            assert!(life.generation() >= generation);
            generation = life.generation();
            assert_eq!(life.reach() == Reach::Yes, life.state() == api::State::Running);
            let waits = matches!(life.state, State::Starting(_) | State::Stopping { .. });
            assert!(!waits || timers.contains(&life.timer), "{:?} has no timer", life.state);
        }
    }
}

#[test]
fn who_is_held_is_woken_by_nobody_until_it_is_released() {
    let mut life = life();
    up(&mut life, 0, 1);
    assert_eq!(life.step(20, Input::Hold(Holder::Disk, "the disk is full".to_owned())).last(), Some(&Action::Freeze));
    life.step(21, Input::Wake("a request".to_owned()));
    life.step(22, Input::Done(Step::Freeze, Ok(())));
    assert_eq!(life.state(), api::State::Frozen);
    assert!(life.step(23, Input::Wake("a request".to_owned())).is_empty());
    assert!(life.step(24, Input::Thaw("a person".to_owned())).is_empty());
    assert!(matches!(life.reach(), Reach::Failed("this host is full", _)));
    assert_eq!(life.failure(25).as_deref(), Some("the disk is full"));
    assert!(life.step(26, Input::Release(Holder::Disk, "room".to_owned())).contains(&Action::Thaw));
    assert_eq!(life.failure(27), None);
}

#[test]
fn who_is_held_by_two_goes_on_when_both_have_released_it() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(20, Input::Hold(Holder::Export, "it is being exported".to_owned()));
    life.step(21, Input::Done(Step::Freeze, Ok(())));
    assert!(life.step(22, Input::Hold(Holder::Disk, "the disk is full".to_owned())).is_empty());
    assert!(life.step(23, Input::Release(Holder::Disk, "room".to_owned())).is_empty());
    assert_eq!(life.failure(24).as_deref(), Some("it is being exported"));
    assert!(life.step(25, Input::Release(Holder::Export, "done".to_owned())).contains(&Action::Thaw));
}

#[test]
fn who_stood_still_before_it_was_held_goes_on_after_only_for_who_asked() {
    let mut life = life();
    up(&mut life, 0, 1);
    life.step(20, Input::Freeze("a person".to_owned()));
    life.step(21, Input::Done(Step::Freeze, Ok(())));
    let generation = life.generation();
    for (at, asked) in [(30, false), (40, true)] {
        life.step(at, Input::Hold(Holder::Copy, "it is being exported".to_owned()));
        if asked {
            assert!(life.step(at + 1, Input::Wake("a request".to_owned())).is_empty());
        }
        // Who asks waits.
        assert!(matches!(life.reach(), Reach::No));
        let done = life.step(at + 2, Input::Release(Holder::Copy, "done".to_owned()));
        assert_eq!(done.contains(&Action::Thaw), asked);
        assert!(asked || (life.state() == api::State::Frozen && life.generation() == generation));
    }
}
