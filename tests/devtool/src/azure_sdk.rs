//! Published versions of the cloud service's client library, which the tests of the resource API are run with.

use crate::python::Package;

/// Where the test looks for their environments.
pub const VARIABLE: &str = "CABANA_AZURE_SDK";

/// The first stable one with session pools, the last with models of one level, and the newest.
pub const PACKAGE: Package = Package {
    name: "azure-mgmt-appcontainers",
    versions: &["3.2.0", "4.0.0", "5.1.0"],
    constraints: "\
azure-common==1.1.28
azure-core==1.41.0
azure-mgmt-core==1.6.0
certifi==2026.10.18
charset-normalizer==3.5.2
idna==3.20
isodate==0.7.2
msrest==0.7.1
oauthlib==4.0.1
requests==2.34.2
requests-oauthlib==2.0.0
typing_extensions==4.16.0
urllib3==2.8.0
",
};
