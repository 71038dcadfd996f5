use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn kept(asked: &[(&str, &str)], status: u16, answered: &[(&str, &str)]) -> Option<Terms> {
    let status = StatusCode::from_u16(status).unwrap();
    keep(&Method::GET, &headers(asked), status, &headers(answered), now())
}

#[test]
fn only_what_may_be_shared_is_kept() {
    assert!(kept(&[], 200, &[]).is_some());
    for control in
        ["no-store", "private", "No-Cache", "no-cache=\"set-cookie\"", "max-age=5, private", "private=\"a,b\""]
    {
        assert!(kept(&[], 200, &[("cache-control", control)]).is_none(), "{control}");
    }
    assert!(kept(&[("cache-control", "no-store")], 200, &[]).is_none());
    assert!(kept(&[("range", "bytes=0-1")], 200, &[]).is_none());
    assert!(kept(&[], 200, &[("set-cookie", "a=b")]).is_none());
    assert!(kept(&[], 200, &[("vary", "*")]).is_none());
    assert!(kept(&[], 206, &[("content-range", "bytes 0-1/2")]).is_none());
    for status in [302, 304, 500, 502, 503] {
        assert!(kept(&[], status, &[]).is_none(), "{status}");
    }
    assert!(kept(&[], 302, &[("cache-control", "max-age=1")]).is_some());
    assert!(keep(&Method::POST, &headers(&[]), StatusCode::OK, &headers(&[]), now()).is_none());
    // Words within quotes are none of the answer's.
    assert!(kept(&[], 200, &[("cache-control", "x=\"a, private\\\", no-store\", public")]).is_some());
}

#[test]
fn what_may_be_for_one_person_has_to_say_that_it_is_not() {
    for (field, value) in [("authorization", "Basic x"), ("cookie", "id=1")] {
        let answered = |control| kept(&[(field, value)], 200, &[("cache-control", control)]);
        assert!(answered("max-age=60").is_none());
        assert!(answered("public").is_some() && answered("s-maxage=60").is_some());
    }
    let anybody = kept(&[], 200, &[]).unwrap();
    assert!(anybody.answers(&headers(&[("cookie", "id=1")]), 0));
    assert!(!anybody.answers(&headers(&[("authorization", "Basic x")]), 0));
}

#[test]
fn what_is_stale_is_used_where_that_is_not_forbidden() {
    let terms = kept(&[], 200, &[("cache-control", "max-age=60")]).unwrap();
    assert!(terms.answers(&headers(&[]), 3600));
    assert!(!terms.answers(&headers(&[("cache-control", "max-age=60")]), 3600));
    assert!(!terms.answers(&headers(&[("cache-control", "no-cache")]), 0));
    assert!(!terms.answers(&headers(&[("pragma", "no-cache")]), 0));
    for (control, until) in [
        ("max-age=60, must-revalidate", 60),
        ("max-age=60, max-age=30, proxy-revalidate", 30),
        ("max-age=60, s-maxage=\"10\"", 10),
        ("must-revalidate", 0),
        ("max-age=-1, must-revalidate", 0),
    ] {
        let terms = kept(&[], 200, &[("cache-control", control)]).unwrap();
        assert_eq!(terms.until, Some(until), "{control}");
        assert!(terms.answers(&headers(&[]), until) && !terms.answers(&headers(&[]), until + 1));
    }
    let date = |seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
    let (then, later) = (date(NOW - 10), date(NOW + 20));
    let answered = [("date", then.as_str()), ("expires", later.as_str()), ("cache-control", "must-revalidate")];
    assert_eq!(kept(&[], 200, &answered).map(|terms| (terms.age, terms.until)), Some((10, Some(30))));
    let answered = [("expires", "0"), ("cache-control", "must-revalidate"), ("age", "7")];
    assert_eq!(kept(&[], 200, &answered).map(|terms| (terms.age, terms.until)), Some((7, Some(0))));
}

#[test]
fn an_answer_is_one_to_requests_like_the_first() {
    let asked = [("accept-encoding", "gzip"), ("accept", "a"), ("accept", "b")];
    let terms = kept(&asked, 200, &[("vary", "Accept-Encoding, accept"), ("vary", "x-a")]).unwrap();
    assert!(terms.answers(&headers(&asked), 0));
    assert!(!terms.answers(&headers(&asked[..2]), 0));
    assert!(!terms.answers(&headers(&[]), 0));
}

proptest! {
    #[test]
    fn no_field_confuses(control in "[a-z0-9=\",\\\\ -]{0,40}", vary in "[a-zA-Z*, -]{0,20}", age in "[0-9a]{0,30}") {
        let answered = [("cache-control", control.as_str()), ("vary", &vary), ("age", &age), ("expires", &age)];
        if let Some(terms) = kept(&[], 200, &answered) {
            prop_assert!(terms.age <= u64::from(u32::MAX));
            prop_assert!(terms.vary.len() <= VARYING);
        }
        // Said plainly beside whatever else, it counts.
        let answered = [("cache-control", control.as_str()), ("cache-control", "no-store")];
        prop_assert!(kept(&[], 200, &answered).is_none());
    }
}
