# One stub for each exception, for both kinds of machine. Xen PV calls a handler with rcx and r11 on top of the
# processor's frame (public/xen.h, "trap handlers"); the processor itself does not. Both end up with:
#   r15 … rax, vector, error code, rip, cs, rflags, rsp, ss

.macro FAULT_STUB vector, has_error
        .balign 16
fault_\vector:
        .if \has_error == 0
        pushq   $0                                      # no error code: put one there
        .endif
        pushq   $\vector
        jmp     fault_common
        .balign 16
fault_pv_\vector:
        popq    %rcx
        popq    %r11
        .if \has_error == 0
        pushq   $0
        .endif
        pushq   $\vector
        jmp     fault_common
.endm

        .section .text.drayage_fault, "ax", @progbits
        .code64
.irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
        FAULT_STUB \vector, 0
.endr
.irp vector, 8,10,11,12,13,14,17,21,29,30
        FAULT_STUB \vector, 1
.endr

fault_common:
        pushq   %rax
        pushq   %rbx
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %rbp
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        cld
        movq    %rsp, %rdi
        andq    $-16, %rsp
        call    drayage_fault
        ud2

        .section .rodata.drayage_fault, "a", @progbits
        .balign 8
        .globl  drayage_fault_stubs, drayage_fault_stubs_pv
.macro FAULT_ENTRY prefix, vector
        .quad   \prefix\vector
.endm
drayage_fault_stubs:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        FAULT_ENTRY fault_, \vector
.endr
drayage_fault_stubs_pv:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        FAULT_ENTRY fault_pv_, \vector
.endr

# The stack that exceptions are handled on where the processor can switch: the one that they happened on may be
# the reason.
        .section .bss.drayage_fault, "aw", @nobits
        .balign 16
drayage_fault_stack:
        .skip   0x4000
        .globl  drayage_fault_stack_top
drayage_fault_stack_top:

        .text
