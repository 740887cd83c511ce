//! What a start, or a probe, that cannot work says.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::support::{GuestSpec, kvm};
use vmm::boot::kernel::KernelError;
use vmm::{
    BlankMachine, BlockConfig, ConfigError, Filters, ProbeError, RateLimits, StartError, Vm,
    VmConfig,
};

/// Tries to start a guest with a kernel of no use, after `change`.
fn start(kvm: &File, change: impl FnOnce(&mut VmConfig)) -> StartError {
    let dir = tempfile::tempdir().unwrap();
    let spec = GuestSpec::program(b"\xf4");
    let mut config = VmConfig {
        machine: BlankMachine::create(kvm, Filters::Off).unwrap(),
        memory: Some(vmm::memory::create(spec.mem_mib).unwrap()),
        mem_mib: spec.mem_mib,
        vcpus: spec.vcpus,
        kernel: spec.kernel,
        initramfs: spec.initramfs,
        cmdline: spec.cmdline,
        blocks: spec.blocks,
        vsock: UnixListener::bind(dir.path().join("vsock.sock")).unwrap(),
        console: tempfile::tempfile().unwrap(),
        limits: RateLimits::default(),
    };
    change(&mut config);
    match Vm::start(config) {
        Err(error) => error,
        Ok(_) => panic!("a guest was started"),
    }
}

#[test]
fn memory_outside_the_limits_is_refused_with_the_number() {
    let Some(kvm) = kvm() else { return };
    let error = start(&kvm, |config| config.mem_mib = 1);
    assert!(
        matches!(
            error,
            StartError::Config {
                source: ConfigError::Memory { mem_mib: 1 }
            }
        ),
        "{error}"
    );
}

#[test]
fn guest_without_processors_is_refused() {
    let Some(kvm) = kvm() else { return };
    let error = start(&kvm, |config| config.vcpus = 0);
    assert!(
        matches!(
            error,
            StartError::Config {
                source: ConfigError::Vcpus { vcpus: 0 }
            }
        ),
        "{error}"
    );
}

#[test]
fn more_processors_than_the_guest_kernel_knows_are_refused() {
    let Some(kvm) = kvm() else { return };
    let error = start(&kvm, |config| config.vcpus = 33);
    assert!(
        matches!(
            error,
            StartError::Config {
                source: ConfigError::Vcpus { vcpus: 33 }
            }
        ),
        "{error}"
    );
}

#[test]
fn file_that_is_not_kvm_is_refused_as_such() {
    let error = BlankMachine::create(&File::open("/dev/null").unwrap(), Filters::Off).unwrap_err();
    assert!(error.to_string().starts_with("This is not KVM"), "{error}");
}

#[test]
fn disk_with_a_base_that_is_not_written_is_refused() {
    let Some(kvm) = kvm() else { return };
    let error = start(&kvm, |config| {
        config.blocks.push(BlockConfig {
            file: tempfile::tempfile().unwrap(),
            base: Some(tempfile::tempfile().unwrap()),
            read_only: true,
        });
    });
    assert!(
        matches!(
            error,
            StartError::Config {
                source: ConfigError::ReadOnlyBase { index: 0 }
            }
        ),
        "{error}"
    );
}

#[test]
fn probe_of_a_file_that_is_not_kvm_says_so() {
    let error = vmm::probe(&File::open("/dev/null").unwrap()).unwrap_err();
    assert!(matches!(error, ProbeError::Kvm { .. }), "{error}");
}

#[test]
fn probe_gives_a_verdict_in_time_on_whatever_kvm_this_is() {
    let Ok(device) = File::options().read(true).write(true).open("/dev/kvm") else {
        // Says why, or fails where KVM must work.
        assert!(kvm().is_none());
        return;
    };
    let started = Instant::now();
    let verdict = vmm::probe(&device);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    match verdict {
        Ok(report) => assert!(report.max_vcpus >= 1),
        Err(ProbeError::Guest { what, .. }) => assert!(!what.is_empty()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn kernel_that_is_no_kernel_is_refused_before_anything_runs() {
    let Some(device) = kvm() else { return };
    let error = start(&device, |config| {
        config.kernel = tempfile::tempfile().unwrap();
        config.kernel.set_len(4096).unwrap();
    });
    assert!(
        matches!(
            error,
            StartError::Kernel {
                source: KernelError::Load { .. }
            }
        ),
        "{error}"
    );
}

#[test]
fn memory_file_of_the_wrong_size_is_refused() {
    let Some(device) = kvm() else { return };
    let error = start(&device, |config| {
        config.memory = Some(vmm::memory::create(128).unwrap());
    });
    assert!(matches!(error, StartError::Memory { .. }), "{error}");
}

#[test]
fn command_line_with_a_newline_is_refused() {
    let Some(device) = kvm() else { return };
    let error = start(&device, |config| {
        config.cmdline = "quiet\nroot".to_owned();
    });
    assert!(matches!(error, StartError::Cmdline { .. }), "{error}");
}
