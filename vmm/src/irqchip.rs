//! The interrupt controllers that KVM emulates: two PICs and the I/O APIC. (Local APICs belong to vCPUs.)

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state,
    kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::machine::MachineError;

/// All three chips, each as KVM gave it.
#[derive(Serialize, Deserialize)]
pub struct IrqchipState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
}

impl IrqchipState {
    /// Reads the chips of a microVM whose vCPUs and devices stand still.
    pub(crate) fn save(vm: &VmFd) -> Result<Self, MachineError> {
        Ok(Self {
            pic_master: get(vm, KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: get(vm, KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: get(vm, KVM_IRQCHIP_IOAPIC)?,
        })
    }

    /// Sets the chips. After the local APICs: the I/O APIC passes on at once what it had not yet passed on, and
    /// a local APIC that is set later would forget it.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), MachineError> {
        set(vm, KVM_IRQCHIP_PIC_MASTER, self.pic_master)?;
        set(vm, KVM_IRQCHIP_PIC_SLAVE, self.pic_slave)?;
        // Read, then overwritten: its address is this build's and not the file's.
        let mut chip = get(vm, KVM_IRQCHIP_IOAPIC)?;
        let address = ioapic(&chip).base_address;
        chip.chip.ioapic = kvm_ioapic_state {
            base_address: address,
            ..ioapic(&self.ioapic)
        };
        set(vm, KVM_IRQCHIP_IOAPIC, chip)
    }
}

fn ioapic(chip: &kvm_irqchip) -> kvm_ioapic_state {
    // SAFETY: reads one member of a union of plain numbers, every bit pattern of which is valid.
    // Its largest member fills it whole, so no byte is uninitialised: KVM or the decoder wrote all of them.
    unsafe { chip.chip.ioapic }
}

fn get(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, MachineError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip)
        .map_err(|source| MachineError::Refused {
            what: "GET_IRQCHIP",
            source,
        })?;
    Ok(chip)
}

/// `chip_id` counts, not what the file says the chip is.
fn set(vm: &VmFd, chip_id: u32, chip: kvm_irqchip) -> Result<(), MachineError> {
    vm.set_irqchip(&kvm_irqchip { chip_id, ..chip })
        .map_err(|source| MachineError::Refused {
            what: "SET_IRQCHIP",
            source,
        })
}
