use model::run::Link;

use super::*;

fn name(text: &str) -> VpsName {
    text.parse().unwrap()
}

fn spare(number: u64) -> Spare {
    let link = Link::new("10.80.0.20".parse().unwrap(), "fd00::a50:14".parse().unwrap());
    Spare { number, layers: Vec::new(), link }
}

/// Does what is to be done, successfully, until there is nothing.
fn settle(shelf: &mut Shelf) -> Vec<Job> {
    let mut done = Vec::new();
    while let Some(job) = shelf.job() {
        match &job {
            Job::Prepare(name) => shelf.prepared(name),
            Job::Make(image) => shelf.made(image, Some(spare(done.len() as u64))),
            Job::Discard(_) | Job::Drop(_) => {}
        }
        done.push(job);
        assert!(done.len() < 100, "it goes on for ever: {done:?}");
    }
    done
}

#[test]
fn who_slept_last_is_prepared_and_who_slept_first_makes_room() {
    let mut shelf = Shelf::new(2);
    for vps in ["a", "b", "c"] {
        shelf.sleeps(&name(vps));
    }
    assert_eq!(settle(&mut shelf), [Job::Prepare(name("c")), Job::Prepare(name("b"))]);
    shelf.sleeps(&name("d"));
    assert_eq!(settle(&mut shelf), [Job::Prepare(name("d")), Job::Discard(name("b"))]);
    shelf.starts(&name("c"));
    // There is a place again, and `a` is still asleep.
    assert_eq!(settle(&mut shelf), [Job::Prepare(name("a"))]);
    shelf.gone(&name("a"));
    assert_eq!(settle(&mut shelf), []);
}

#[test]
fn who_is_new_takes_nobodys_place() {
    let mut shelf = Shelf::new(2);
    shelf.is_new(&name("a"));
    shelf.sleeps(&name("b"));
    for vps in ["c", "d", "e", "f", "g"] {
        shelf.is_new(&name(vps));
    }
    let done = settle(&mut shelf);
    assert_eq!((done.len(), &done[0]), (2, &Job::Prepare(name("b"))), "{done:?}");
    shelf.sleeps(&name("h"));
    let done = settle(&mut shelf);
    assert!(matches!(&done[..], [Job::Prepare(h), Job::Discard(other)] if h.as_str() == "h" && other.as_str() != "b"));
}

#[test]
fn without_memory_nothing_is_prepared() {
    let mut shelf = Shelf::new(0);
    shelf.sleeps(&name("a"));
    assert_eq!(shelf.take_spare(&"debian:".parse().unwrap()), None);
    assert_eq!(settle(&mut shelf), []);
}

#[test]
fn a_new_host_has_nothing_prepared() {
    let mut shelf = Shelf::new(4);
    shelf.sleeps(&name("a"));
    assert_eq!(settle(&mut shelf), [Job::Prepare(name("a"))]);
    shelf.found([].into_iter());
    assert_eq!(settle(&mut shelf), [Job::Prepare(name("a"))]);
    shelf.found([name("a"), name("b")].into_iter());
    assert_eq!(settle(&mut shelf), []);
}

#[test]
fn spares_follow_the_images_of_new_vpss_within_their_part() {
    let mut shelf = Shelf::new(8);
    let image = |text: &str| -> ImageRef { text.parse().unwrap() };
    assert_eq!(shelf.take_spare(&image("debian:nginx-light")), None);
    let make = Job::Make(image("debian:nginx-light"));
    assert_eq!(settle(&mut shelf), [make.clone(), make.clone()]);
    assert!(shelf.take_spare(&image("debian:nginx-light")).is_some());
    assert_eq!(settle(&mut shelf), [make]);
    for package in ["a1", "b1", "c1", "d1"] {
        shelf.take_spare(&image(&format!("debian:{package}")));
    }
    // Those of the image that no VPS was made of for longest go; two places are all that spares get.
    let jobs = settle(&mut shelf);
    assert!(matches!(jobs[..2], [Job::Drop(_), Job::Drop(_)]), "{jobs:?}");
    assert_eq!(jobs[2..], [Job::Make(image("debian:d1")), Job::Make(image("debian:d1"))]);
}

#[test]
fn what_fails_is_not_tried_for_ever() {
    let mut shelf = Shelf::new(8);
    let image: ImageRef = "debian:gone".parse().unwrap();
    shelf.take_spare(&image);
    assert_eq!(shelf.job(), Some(Job::Make(image.clone())));
    shelf.made(&image, None);
    assert_eq!(shelf.job(), None);
}

#[test]
fn of_a_forgotten_image_nothing_stays() {
    let mut shelf = Shelf::new(16);
    let image = |text: &str| -> ImageRef { text.parse().unwrap() };
    let (gone, stays) = (image("debian:gone"), image("debian:stays"));
    shelf.take_spare(&gone);
    shelf.take_spare(&stays);
    assert_eq!(settle(&mut shelf).len(), 4);
    assert!(shelf.take_spare(&gone).is_some());
    // One is being made while the image goes.
    assert_eq!(shelf.job(), Some(Job::Make(gone.clone())));
    assert_eq!(shelf.forget(|image| *image == gone).len(), 1);
    shelf.made(&gone, Some(spare(9)));
    assert_eq!(settle(&mut shelf), [Job::Drop(spare(9))]);
    assert!(shelf.take_spare(&stays).is_some());
}
