//! What servers behind address routes see of their clients, and clients that wake nobody.
//!
//! Clients with addresses of their own are in a namespace of theirs, joined by `eth0` to the test's, which is the host's.

use anyhow::{Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{CLIENT, Client, HOST, in_own_network, sh},
};

/// The gateway's VPS: the third of the designated ones.
const GATEWAY: &str = "10.80.0.4";

const NGINX: &str = r#"
error_log stderr; events {}
http {
  access_log off;
  server { listen 80; listen [::]:80; return 200 "$remote_addr"; }
  server { listen 81 proxy_protocol;
           return 200 "$remote_addr $proxy_protocol_addr $proxy_protocol_server_addr $proxy_protocol_server_port"; }
}
"#;

fn spec(plain: &str) -> String {
    format!(
        r#"
tenant = "acme"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-c", "/etc/nginx.conf", "-g", "daemon off;"]
files   = {{ "/etc/nginx.conf" = '''{NGINX}''' }}
idle    = {{ after = "1s", then = "freeze" }}
[vps.web.routes]
"tcp://*:8080" = {plain}
"tcp://*:8081" = {{ port = 81, client = "proxy-v1" }}
"tcp://*:8082" = {{ port = 81, client = "proxy-v2" }}
"tcp://*:8083" = {{ port = 80, client = "gateway" }}

[vps.cache]
image   = "debian:redis-server"
command = ["redis-server", "--protected-mode", "no", "--bind", "*", "-::*"]
routes  = {{ "tcp://*:6379" = 6379 }}
"#
    )
}

trait Get {
    fn get(&self, port: u16) -> Result<[String; 2]>;
}

impl Get for Client {
    fn get(&self, port: u16) -> Result<[String; 2]> {
        let get = |host: String| self.sh(&format!("curl --silent --show-error --max-time 20 http://{host}:{port}/"));
        Ok([get(HOST[0].to_owned())?, get(format!("[{}]", HOST[1]))?])
    }
}

fn seen(uplink: &str) -> Result<()> {
    let client = Client::new()?;
    let options = HostOptions { config: format!("[network]\n{uplink}\n"), ..HostOptions::default() };
    let mut host = Host::start(options)?;
    host.apply("web.toml", &spec("80"))?;

    // The first connection finds it asleep, later ones running or frozen.
    for _ in 0..2 {
        ensure!(client.get(8080)? == CLIENT, "{:?}", client.get(8080)?);
        host.run(&["freeze", "web"])?;
    }
    let told = client.get(8081)?;
    let header = |family: usize, port| format!("{GATEWAY} {} {} {port}", CLIENT[family], HOST[family]);
    ensure!(told == [header(0, 8081), header(1, 8081)], "{told:?}");
    let told = client.get(8082)?;
    ensure!(told == [header(0, 8082), header(1, 8082)], "{told:?}");
    let told = client.get(8083)?;
    ensure!(told == [GATEWAY, GATEWAY], "{told:?}");

    // A client on the host itself has no address that a VPS could answer to.
    let told = sh("curl --silent --show-error --max-time 20 http://127.0.0.1:8080/")?;
    ensure!(told == GATEWAY, "{told}");

    // What a client writes itself comes after the gateway's header, where nginx awaits a request.
    let forged = "printf \"PROXY TCP4 198.51.100.1 192.0.2.1 1 8081\\r\\nGET / HTTP/1.0\\r\\n\\r\\n\" | \
                  timeout 20 perl -MIO::Socket::IP -e \"my \\$s = IO::Socket::IP->new(q(192.0.2.1:8081)); print \\$s <STDIN>; \
                  \\$s->shutdown(1); print <\\$s>\"";
    let told = client.sh(forged)?;
    ensure!(told.contains("400 Bad Request") && !told.contains("198.51.100.1"), "{told}");

    for (server, address) in HOST.iter().zip(CLIENT) {
        let list = client.sh(&format!("redis-cli -h {server} client list"))?;
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        ensure!(list.contains(&format!(" addr={address}:")), "{list}");
    }

    // A change counts at once, both ways, and connections that are there go on.
    host.apply("web.toml", &spec("{ port = 80, client = \"gateway\" }"))?;
    ensure!(client.get(8080)? == [GATEWAY, GATEWAY], "{:?}", client.get(8080)?);
    host.apply("web.toml", &spec("80"))?;
    ensure!(client.get(8080)? == CLIENT, "{:?}", client.get(8080)?);

    // Neither a new gateway nor a new network service forgets it.
    for service in ["gateway", "network"] {
        host.kill(host.pid_of(service)?)?;
        let told = client.get(8080)?;
        ensure!(told == CLIENT, "after a new {service}: {told:?}\n{}", host.daemon_log());
    }
    host.stop()
}

#[test]
fn servers_see_their_clients_as_their_routes_say() -> Result<()> {
    in_own_network("servers_see_their_clients_as_their_routes_say", || seen(""))
}

#[test]
fn servers_see_their_clients_beside_an_uplink() -> Result<()> {
    in_own_network("servers_see_their_clients_beside_an_uplink", || seen("uplink = \"eth0\""))
}

#[test]
fn a_crawler_gets_the_last_answer_and_wakes_nobody() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = r#"
tenant = "acme"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = { "http://web.test:20400" = 80, "tcp://127.0.0.1:20401" = 80 }
files   = { "/var/www/html/index.html" = "hello\n" }
ignore  = { user_agent = ["*bot*"], from = ["127.0.0.1"] }
idle    = { after = "500ms" }
"#;
    let bots = spec.replace(", from = [\"127.0.0.1\"]", "");
    host.apply("web.toml", &bots)?;
    let curl = |agent: &str, path: &str| {
        sh(&format!(
            "curl --silent --show-error --include --max-time 20 -A {agent} -H Host:web.test http://127.0.0.1:20400{path} | tr -d '\\r'"
        ))
    };
    let refused = curl("Googlebot", "/")?;
    ensure!(refused.contains(" 503 ") && refused.to_lowercase().contains("\nretry-after: 3600\n"), "{refused}");
    ensure!(host.state("web")? == "asleep", "a crawler woke it");
    ensure!(curl("Mozilla", "/")?.ends_with("\n\nhello\n"), "a person is not served");
    host.await_state("web", "asleep", std::time::Duration::from_secs(20))?;
    let last = curl("Googlebot", "/")?;
    ensure!(last.contains(" 200 OK") && last.contains("\nage: ") && last.ends_with("\n\nhello\n"), "{last}");
    ensure!(curl("Googlebot", "/other")?.contains(" 503 "), "what nobody asked for is there");
    // By address, on an address route: closed.
    host.apply("web.toml", spec)?;
    let closed = sh("curl --silent --max-time 20 http://127.0.0.1:20401/ || echo closed")?;
    ensure!(closed == "closed\n", "{closed}");
    ensure!(host.state("web")? == "asleep", "an ignored client woke it");
    let why = host.json(&["why", "web"])?;
    ensure!(why["ignored"] == serde_json::json!({ "served": 0, "from_cache": 1, "refused": 3 }), "{why}");
    let told = host.run(&["why", "web"])?;
    ensure!(told.contains("ignored clients came 4 times"), "{told}");
    host.stop()
}
