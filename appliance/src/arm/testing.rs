//! The resources of a test: one image, and no machine.

use super::*;
use crate::admin::tests::{Demo, OneImage};
use crate::pool::testing::FakeLauncher;
use crate::vault::KEY_BYTES;

pub const RULES: Rules = Rules {
    min_cooldown_seconds: 300,
    max_cpu_millis: 2000,
    max_mem_mib: 4096,
};

pub async fn arm(launcher: &Arc<FakeLauncher>, pools: &Pools, domain: Option<&str>) -> Arc<Arm> {
    Arm::open(Parts {
        pools: pools.clone(),
        records: launcher.tools().records,
        images: Arc::new(Demo),
        keeper: Arc::new(OneImage),
        rules: RULES,
        endpoints: Endpoints {
            host: "https://localhost:8443".into(),
            domain: domain.map(str::to_owned),
            port: 8443,
        },
        vault: Arc::new(Vault::new(&[7; KEY_BYTES]).unwrap()),
    })
    .await
    .unwrap()
}
