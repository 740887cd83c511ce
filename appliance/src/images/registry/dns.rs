//! Host names, looked up by our own resolver: the binary is static, and glibc's would load libraries of
//! the host. First `/etc/hosts`, then the servers in `/etc/resolv.conf`; both are read for each look-up, so a
//! change counts at once. Without `resolv.conf` nobody is asked: there is no server that we know better.
//!
//! # Not here
//! Other sources that `nsswitch.conf` may name: mDNS, LDAP and the like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// hosts(5).
const HOSTS: &str = "/etc/hosts";

#[derive(Debug)]
pub struct HostResolver;

impl Resolve for HostResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = look_up(name.as_str()).await?;
            let addresses = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

async fn look_up(name: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
    if name.eq_ignore_ascii_case("localhost") {
        // By definition (RFC 6761, 6.3), whatever the files say.
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    // A host without the file has no names in it.
    let hosts = tokio::fs::read_to_string(HOSTS).await.unwrap_or_default();
    let known = listed(&hosts, name);
    if !known.is_empty() {
        return Ok(known);
    }
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    let lookup = builder.build()?.lookup_ip(name).await?;
    Ok(lookup.iter().collect())
}

/// The addresses that the text of a hosts file has for a name.
fn listed(hosts: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let lines = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_is_read_as_its_manual_says() {
        let hosts = "# nothing\n127.0.0.1\tlocalhost\n10.0.0.5  Registry.Example reg # x other\n\
                     ::5 registry.example\nbad line\n10.0.0.6\n";
        let addresses = |name| listed(hosts, name);
        let both: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "::5".parse().unwrap()];
        assert_eq!(addresses("registry.example"), both);
        assert_eq!(addresses("REG."), both[..1]);
        for unknown in ["other", "example", "line", ""] {
            assert!(addresses(unknown).is_empty(), "{unknown}");
        }
    }

    #[tokio::test]
    async fn localhost_is_this_host_whatever_the_files_say() {
        let found = look_up("LocalHost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback));
    }
}
