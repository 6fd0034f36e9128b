# The first instructions of the guest, and the ELF notes that lead Xen and QEMU to them.
# Facts: Xen's docs/misc/pvh.pandoc, public/xen.h ("start-of-day memory layout"), public/elfnote.h.

# ---------------------------------------------------------------------------------------------
# ELF notes. The descriptor of an address note is 8 bytes: QEMU reads that many for an ELF64.

.macro XEN_NOTE_STRING type, text
        .balign 4
        .long   2f - 1f                 # name size
        .long   4f - 3f                 # descriptor size
        .long   \type
1:      .asciz  "Xen"
2:      .balign 4
3:      .asciz  "\text"
4:      .balign 4
.endm

.macro XEN_NOTE_ADDRESS type, value
        .balign 4
        .long   2f - 1f
        .long   8
        .long   \type
1:      .asciz  "Xen"
2:      .balign 4
        .quad   \value
.endm

        .section .note.Xen, "a", @note
        XEN_NOTE_STRING  6, "drayage"                   # GUEST_OS
        XEN_NOTE_STRING  5, "xen-3.0"                   # XEN_VERSION
        XEN_NOTE_STRING  8, "generic"                   # LOADER
        XEN_NOTE_ADDRESS 1, drayage_pv_entry            # ENTRY
        XEN_NOTE_ADDRESS 3, 0                           # VIRT_BASE: virtual == pseudo-physical
        XEN_NOTE_ADDRESS 4, 0                           # PADDR_OFFSET
        XEN_NOTE_ADDRESS 18, drayage_pvh_entry          # PHYS32_ENTRY: PVH and qemu -kernel

# ---------------------------------------------------------------------------------------------
# Xen PV: 64-bit mode, paging on, SSE usable, rsi = start_info, event upcalls masked.

        .section .text.drayage_entry, "ax", @progbits
        .code64
        .globl  drayage_pv_entry
drayage_pv_entry:
        cld
        leaq    drayage_stack_top(%rip), %rsp           # leave the builder's one-page stack
        xorl    %ebp, %ebp                              # the end of every stack trace
        movq    %rsi, %rdi
        call    drayage_start_pv
        ud2

# ---------------------------------------------------------------------------------------------
# PVH and qemu -kernel: 32-bit flat, paging off, interrupts off, ebx = hvm_start_info.

        .code32
        .globl  drayage_pvh_entry
drayage_pvh_entry:

# Phase 1: a known state and a stack. ebx stays untouched until phase 5.
        cli
        cld
        movl    $drayage_stack_top, %esp

# Phase 2: identity map of 0 to 4 GiB in pages of 2 MiB (Xen's special pages lie just below 4 GiB).
        movl    $drayage_boot_tables, %edi
        leal    0x1003(%edi), %eax                      # L3, present | writable
        movl    %eax, (%edi)                            # L4[0]
        leal    0x2003(%edi), %eax                      # first L2, present | writable
        leal    0x1000(%edi), %edx
        movl    $4, %ecx
1:      movl    %eax, (%edx)                            # L3[0..4]
        addl    $0x1000, %eax
        addl    $8, %edx
        decl    %ecx
        jnz     1b
        leal    0x2000(%edi), %edx
        movl    $0x83, %eax                             # present | writable | 2 MiB
        movl    $2048, %ecx
2:      movl    %eax, (%edx)                            # L2[0..2048]; the upper halves are zero
        addl    $0x200000, %eax
        addl    $8, %edx
        decl    %ecx
        jnz     2b

# Phase 3: long mode, and SSE before the first Rust instruction (the prebuilt core uses SSE2).
        movl    %cr4, %eax
        orl     $0x620, %eax                            # PAE (5), OSFXSR (9), OSXMMEXCPT (10)
        movl    %eax, %cr4
        movl    %edi, %cr3
        movl    $0xc0000080, %ecx                       # EFER
        rdmsr
        orl     $0x900, %eax                            # LME (8), NXE (11)
        wrmsr
        movl    %cr0, %eax
        andl    $0xfffffff3, %eax                       # clear EM (2), TS (3)
        orl     $0x80010022, %eax                       # PG (31), WP (16), NE (5), MP (1)
        movl    %eax, %cr0

# Phase 4: a 64-bit code segment.
        lgdt    drayage_boot_gdt_pointer
        ljmpl   $8, $drayage_long_mode

# Phase 5: 64-bit code with flat data segments.
        .code64
drayage_long_mode:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        leaq    drayage_stack_top(%rip), %rsp
        xorl    %ebp, %ebp
        movl    %ebx, %edi                              # also clears the upper half
        call    drayage_start_pvh
        ud2

        .section .rodata.drayage_gdt, "a", @progbits
        .balign 8
drayage_boot_gdt:
        .quad   0                                       # 0x00: null
        .quad   0x00af9a000000ffff                      # 0x08: code, 64-bit, ring 0
        .quad   0x00cf92000000ffff                      # 0x10: data, ring 0
drayage_boot_gdt_pointer:
        .word   drayage_boot_gdt_pointer - drayage_boot_gdt - 1
        .long   drayage_boot_gdt

# ---------------------------------------------------------------------------------------------
# The stack with its guard page below it, and the page tables that only PVH uses.

        .section .bss.drayage_stack, "aw", @nobits
        .balign 4096
        .globl  drayage_stack_guard, drayage_stack_bottom, drayage_stack_top
drayage_stack_guard:
        .skip   0x1000
drayage_stack_bottom:
        .skip   0x20000
drayage_stack_top:

        .section .bss.drayage_tables, "aw", @nobits
        .balign 4096
        .globl  drayage_boot_tables
drayage_boot_tables:
        .skip   0x6000                                  # L4, L3, four L2

# ---------------------------------------------------------------------------------------------
# The prebuilt core names these two, and with panic = "abort" nothing ever calls them.
        .text
        .globl  rust_eh_personality, _Unwind_Resume
rust_eh_personality:
_Unwind_Resume:
        ud2
