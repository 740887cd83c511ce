//! ACPI tables of a hardware-reduced machine.
//!
//! Only what a guest needs to find its processors, interrupt controllers and devices, to power off and to
//! reset: RSDP, XSDT, FADT, MADT, DSDT (ACPI 6.5). There is no FACS, no PM timer, no SCI and no PCI.
//!
//! A hardware-reduced machine has no general-purpose events either. What it has is the Generic Event Device,
//! whose interrupt runs a method (ACPI 6.5, section 5.6.9); ours has one, which tells the driver of the
//! generation id that the 16 bytes have changed.

use acpi_tables::Aml;
use acpi_tables::aml::{self, Path};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::{power, serial};
use crate::memory::{Memory, layout};

const OEM_ID: [u8; 6] = *b"CABANA";
const OEM_TABLE_ID: [u8; 8] = *b"CABANAVM";
const OEM_REVISION: u32 = 1;
/// Length of the header that every table starts with.
const SDT_HEADER: u32 = 36;
/// DSDT revision 2 and later means 64-bit integers in AML.
const DSDT_REVISION: u8 = 2;
/// Id of the only I/O APIC. Above every local APIC id, because some kernels compare them.
const IO_APIC_ID: u8 = 0xf0;

/// Why the tables could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("The ACPI tables need {size} bytes, there is room for {room}")]
    TooLarge { size: u64, room: u64 },
    #[error("Cannot write the ACPI tables")]
    Write { source: vm_memory::GuestMemoryError },
}

/// A virtio-mmio transport as the guest is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    pub index: u8,
}

impl VirtioSlot {
    /// First address of its registers.
    pub fn base(self) -> u32 {
        let base = layout::VIRTIO_MMIO + u64::from(self.index) * layout::VIRTIO_MMIO_SIZE;
        u32::try_from(base).expect("the hole for devices is below 4 GiB")
    }

    /// Its interrupt line.
    pub fn gsi(self) -> u32 {
        layout::VIRTIO_GSI + u32::from(self.index)
    }
}

/// Writes all tables. What the generation id is, the DSDT does not say, only where.
pub fn write(memory: &Memory, vcpus: u8, slots: &[VirtioSlot]) -> Result<(), AcpiError> {
    let write_at = |at: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|source| AcpiError::Write { source })
    };
    let (rsdp, tables) = build(vcpus, slots);
    let size = TABLES - layout::ACPI + tables.len() as u64;
    if size > layout::ACPI_SIZE {
        return Err(AcpiError::TooLarge {
            size,
            room: layout::ACPI_SIZE,
        });
    }
    write_at(layout::ACPI, &rsdp)?;
    write_at(TABLES, &tables)
}

/// Tables start here, behind the RSDP.
const TABLES: u64 = layout::ACPI + 0x40;

/// The RSDP, and all other tables as one block to be placed at `TABLES`.
fn build(vcpus: u8, slots: &[VirtioSlot]) -> (Vec<u8>, Vec<u8>) {
    let mut block = Vec::new();
    let mut place = |table: Vec<u8>| {
        let address = TABLES + block.len() as u64;
        block.extend_from_slice(&table);
        // ACPI wants no alignment; eight bytes make dumps readable.
        block.resize(block.len().next_multiple_of(8), 0);
        address
    };
    let dsdt = place(dsdt(slots));
    let fadt = place(bytes_of(&fadt(dsdt)));
    let madt = place(bytes_of(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes_of(&xsdt));
    (bytes_of(&Rsdp::new(OEM_ID, xsdt)), block)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// One of the registers of `devices::power`.
fn power_port(offset: u64) -> GAS {
    let port = u64::from(layout::POWER_PORTS) + offset;
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Without these two the kernel would expect fixed buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .dsdt_64(dsdt);
    fadt.reset_reg = power_port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = power_port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = power_port(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, layout::IO_APIC, 0));
    madt
}

fn dsdt(slots: &[VirtioSlot]) -> Vec<u8> {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        SDT_HEADER,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut aml = bytes_of(&s5());
    append_serial(&mut aml);
    append_generation_id(&mut aml);
    append_event_device(&mut aml);
    for slot in slots {
        append_virtio(&mut aml, *slot);
    }
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

/// `_S5`: what to write to the sleep control register to power off.
fn s5() -> aml::Name {
    aml::Name::new(
        Path::new("_S5_"),
        &aml::Package::new(vec![&power::S5_SLEEP_TYPE]),
    )
}

/// COM1. Without this node the kernel finds the port by its legacy table but has no interrupt for it.
fn append_serial(aml: &mut Vec<u8>) {
    let port = layout::SERIAL_PORT;
    let len = u8::try_from(serial::LEN).expect("eight");
    aml::Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501")),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(port, port, 1, len),
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// VMGenID: `ADDR` gives the two halves of the address of the 16 bytes (Microsoft, "Virtual Machine Generation ID").
fn append_generation_id(aml: &mut Vec<u8>) {
    let low = u32::try_from(layout::VMGENID).expect("a constant below 1 MiB");
    aml::Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"CABN0001"),
            &aml::Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("ADDR"), &aml::Package::new(vec![&low, &0_u32])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The Generic Event Device. Its interrupt means: the generation id has changed ("Virtual Machine Generation ID":
/// the notification is 0x80).
fn append_event_device(aml: &mut Vec<u8>) {
    const CHANGED: u8 = 0x80;
    let line = u8::try_from(layout::GENERATION_GSI).expect("a pin of the I/O APIC");
    aml::Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::GENERATION_GSI,
                )]),
            ),
            &aml::Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &line),
                    vec![&aml::Notify::new(&Path::new("\\_SB_.VGEN"), &CHANGED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// One virtio-mmio transport, as Linux's virtio_mmio driver looks for it.
fn append_virtio(aml: &mut Vec<u8>, slot: VirtioSlot) {
    let size = u32::try_from(layout::VIRTIO_MMIO_SIZE).expect("one page");
    aml::Device::new(
        Path::new(&format!("_SB_.VR{:02X}", slot.index)),
        vec![
            &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
            &aml::Name::new(Path::new("_UID"), &slot.index),
            &aml::Name::new(Path::new("_CCA"), &aml::ONE),
            &aml::Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, slot.base(), size),
                    &aml::Interrupt::new(true, true, false, false, slot.gsi()),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest address, cut to its own length.
    fn table(block: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - TABLES).unwrap();
        let length = u32::from_le_bytes(block[start + 4..start + 8].try_into().unwrap()) as usize;
        &block[start..start + length]
    }

    fn slots(count: u8) -> Vec<VirtioSlot> {
        (0..count).map(|index| VirtioSlot { index }).collect()
    }

    #[test]
    fn rsdp_leads_to_tables_whose_checksums_hold() {
        let (rsdp, block) = build(4, &slots(5));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&block, u64_at(&rsdp, 24));
        let fadt = table(&block, u64_at(xsdt, 36));
        let madt = table(&block, u64_at(xsdt, 44));
        let dsdt = table(&block, u64_at(fadt, 140));
        assert_eq!(
            [&xsdt[..4], &fadt[..4], &madt[..4], &dsdt[..4]],
            [b"XSDT", b"FACP", b"APIC", b"DSDT"]
        );
        assert_eq!([sum(xsdt), sum(fadt), sum(madt), sum(dsdt)], [0; 4]);
    }

    #[test]
    fn madt_lists_every_vcpu_and_the_io_apic() {
        let madt = bytes_of(&madt(3));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!(madt[44 + 2 * 8 + 3], 2, "APIC id of the third processor");
    }

    #[test]
    fn event_device_notifies_the_generation_id() {
        let dsdt = dsdt(&slots(1));
        let find = |wanted: &[u8]| dsdt.windows(wanted.len()).any(|part| part == wanted);
        assert!(find(b"ACPI0013"));
        // If (Arg0 == 3) { Notify (\_SB.VGEN, 0x80) }
        let body = [
            b"\x93\x68\x0a\x03\x86".as_slice(),
            b"\\\x2e_SB_VGEN\x0a\x80",
        ]
        .concat();
        assert!(find(&body), "{dsdt:x?}");
    }

    #[test]
    fn tables_of_the_largest_guest_fit_their_space() {
        let most = u8::try_from(layout::LAST_GSI - layout::VIRTIO_GSI + 1).unwrap();
        let (_, block) = build(32, &slots(most));
        assert!(TABLES - layout::ACPI + block.len() as u64 <= layout::ACPI_SIZE);
    }
}
