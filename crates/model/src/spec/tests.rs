use super::*;

const BLOG: &str = r#"
tenant = "acme"

[vps.blog]
image = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes = { "http://blog.example.org:8080" = 80 }
limits = { memory = "512MiB", cpu = 1.5, processes = 200 }
idle = { after = "3s", then = "freeze" }
files = { "/etc/nginx/conf.d/a.conf" = """
server { listen 80; }
""" }
"#;

fn problems(text: &str) -> String {
    let problems = parse("blog.toml", text).expect_err("must be refused");
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn a_spec_is_read() {
    let spec = parse("blog.toml", BLOG).expect("a good spec");
    let blog = &spec.vps["blog"];
    assert_eq!(blog.limits, Limits { memory: Some(512 << 20), cpu_millis: Some(1500), processes: Some(200) });
    assert_eq!(blog.idle, Idle::After { after_ms: 3000, then: IdleAction::Freeze });
    assert_eq!(blog.files["/etc/nginx/conf.d/a.conf"], "server { listen 80; }\n");
    assert_eq!(blog.ready, ReadySpec::Listen(None));
    assert_eq!(blog.start_deadline_ms, 30_000);
    assert!(blog.setuid && !blog.nesting);
    assert_eq!(blog.ids, 65_536);
}

#[test]
fn show() {
    println!(
        "{}",
        problems(
            "tenant = \"Acme\"\n[vps.blog]\nimage = \"nginx\"\nmemory = \"512MiB\"\nvolumes = {}\ncomand = []\n[vps.db]\nroutes = { \"http://A\" = 80, \"http://a\" = 81 }\nlimits = { memory = 5 }\n"
        )
    );
    println!("{}", problems("tenant = \"acme\ntenant = 3\n[vps.a]\n[vps.a]\nx = = \n"));
    println!("{}", render(&"blog".parse().unwrap(), &parse("b", BLOG).unwrap().vps["blog"]));
}
