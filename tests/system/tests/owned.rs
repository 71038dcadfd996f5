//! Addresses that are routed to the host for VPSs alone: routes to them are the network VPS's, and the gateway's only to wake.

use anyhow::{Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{CLIENT, Client, HOST, in_own_network, sh},
};

const OWNED: [&str; 2] = ["198.51.100.16/28", "2001:db8:1::/64"];
/// Whose routes are at 17, and at 18.
const WEB: [&str; 2] = ["198.51.100.17", "[2001:db8:1::17]"];
const OTHER: [&str; 2] = ["198.51.100.18", "[2001:db8:1::18]"];

const NGINX: &str = r#"
error_log stderr; events {}
http { access_log off; server { listen 80; listen [::]:80; return 200 "NAME $remote_addr"; } }
"#;

fn vps(name: &str, addresses: [&str; 2], idle: &str) -> String {
    let nginx = NGINX.replace("NAME", name);
    let [v4, v6] = addresses;
    format!(
        "[vps.{name}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-c\", \"/etc/nginx.conf\", \"-g\", \"daemon off;\"]\n\
         files = {{ \"/etc/nginx.conf\" = '''{nginx}''' }}\nidle = {idle}\n\
         routes = {{ \"tcp://{v4}:80\" = 80, \"tcp://{v6}:80\" = 80 }}\n"
    )
}

fn start(client: &Client) -> Result<Host> {
    let [v4, v6] = OWNED;
    client.sh(&format!("ip route add {v4} via {}; ip route add {v6} via {}", HOST[0], HOST[1]))?;
    let config = format!("[network]\nuplink = \"eth0\"\naddresses = [{v4:?}, {v6:?}]\n");
    // Before Linux 6.17 the host has to be a router for IPv6 already.
    sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
    Host::start(HostOptions { config, ..HostOptions::default() })
}

fn get(client: &Client, host: &str) -> Result<String> {
    client.sh(&format!("curl --silent --show-error --max-time 20 http://{host}/"))
}

#[test]
fn a_route_by_an_owned_address_wakes_and_shows_its_client() -> Result<()> {
    in_own_network("a_route_by_an_owned_address_wakes_and_shows_its_client", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        let both = vps("web", WEB, "\"never\"") + &vps("other", OTHER, "\"never\"");
        host.apply("web.toml", &format!("tenant = \"acme\"\n{both}"))?;
        for _ in 0..2 {
            for (name, addresses) in [("web", WEB), ("other", OTHER)] {
                for (address, from) in addresses.iter().zip(CLIENT) {
                    let told = get(&client, address)?;
                    ensure!(told == format!("{name} {from}"), "{address}: {told}");
                }
            }
        }
        host.stop()
    })
}
