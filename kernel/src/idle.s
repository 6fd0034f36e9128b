# The two interrupts of a machine without Xen: the local APIC's timer, which ends a nap, and its spurious vector.
# They come at the `hlt` alone, on a stack of their own, and have nothing to do but to be acknowledged.

        .section .text.drayage_idle, "ax", @progbits
        .code64
        .globl  drayage_timer_stub, drayage_spurious_stub
        .balign 16
drayage_timer_stub:
        pushq   %rax
        movq    drayage_apic_end(%rip), %rax
        movl    $0, (%rax)
        popq    %rax
drayage_spurious_stub:
        iretq

        .section .bss.drayage_idle, "aw", @nobits
        .balign 8
        .globl  drayage_apic_end
drayage_apic_end:
        .skip   8                                       # address of the end-of-interrupt register

        .text
