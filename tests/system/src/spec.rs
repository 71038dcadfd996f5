//! Specs of small servers that need nothing but the base image, which has perl.

/// A spec of one VPS `name` that is reached on `127.0.0.1:port` and runs `program` in perl, which must listen on port 7.
/// `more` are further lines of the VPS.
pub fn perl(name: &str, port: u16, program: &str, more: &str) -> String {
    format!(
        r#"
tenant = "acme"
[vps.{name}]
image   = "debian:"
command = ["perl", "-e", {program:?}]
routes  = {{ "tcp://127.0.0.1:{port}" = 7 }}
{more}
"#
    )
}

/// A program for `perl`: runs `setup`, listens, then runs `serve` with each connection in `$c`.
pub fn server(setup: &str, serve: &str) -> String {
    format!(
        "use IO::Socket::INET; $| = 1; $SIG{{CHLD}} = 'IGNORE'; {setup}; \
         my $s = IO::Socket::INET->new(LocalPort => 7, Listen => 128, ReuseAddr => 1) or die; \
         while (my $c = $s->accept) {{ {serve} }}"
    )
}

/// What `server` serves to give back each line, each connection in a process of its own.
pub const ECHO: &str = "next if fork; while (my $l = <$c>) { print $c $l } exit";
