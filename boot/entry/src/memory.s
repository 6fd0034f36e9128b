# memcpy and its family, for a kernel that has no libc; link.ld gives them their C names. System V ABI: rdi, rsi, rdx; SSE2 only.
# Up to 128 bytes with overlapping loads, all loads before the first store (so memmove shares them);
# then 64 bytes a turn; from 1 KiB `rep movsq`, which every 64-bit processor does by lines of its cache.

        .section .text.drayage_memory, "ax", @progbits
        .code64

        .globl  drayage_memcpy, drayage_memmove, drayage_memset, drayage_memcmp, drayage_strlen
        .balign 32
drayage_memmove:
        movq    %rdi, %rcx
        subq    %rsi, %rcx                              # dst - src, unsigned
        cmpq    %rdx, %rcx
        jb      .Lmove_overlap                          # dst lies inside [src, src + len)
        .balign 16
drayage_memcpy:
        movq    %rdi, %rax
        cmpq    $16, %rdx
        jb      .Lcopy_tiny
        cmpq    $32, %rdx
        ja      .Lcopy_over_32
        movups  (%rsi), %xmm0
        movups  -16(%rsi,%rdx), %xmm1
        movups  %xmm0, (%rdi)
        movups  %xmm1, -16(%rdi,%rdx)
        ret
.Lcopy_over_32:
        cmpq    $64, %rdx
        ja      .Lcopy_over_64
        movups  (%rsi), %xmm0
        movups  16(%rsi), %xmm1
        movups  -32(%rsi,%rdx), %xmm2
        movups  -16(%rsi,%rdx), %xmm3
        movups  %xmm0, (%rdi)
        movups  %xmm1, 16(%rdi)
        movups  %xmm2, -32(%rdi,%rdx)
        movups  %xmm3, -16(%rdi,%rdx)
        ret
.Lcopy_over_64:
        cmpq    $128, %rdx
        ja      .Lcopy_over_128
        movups  (%rsi), %xmm0
        movups  16(%rsi), %xmm1
        movups  32(%rsi), %xmm2
        movups  48(%rsi), %xmm3
        movups  -64(%rsi,%rdx), %xmm4
        movups  -48(%rsi,%rdx), %xmm5
        movups  -32(%rsi,%rdx), %xmm6
        movups  -16(%rsi,%rdx), %xmm7
        movups  %xmm0, (%rdi)
        movups  %xmm1, 16(%rdi)
        movups  %xmm2, 32(%rdi)
        movups  %xmm3, 48(%rdi)
        movups  %xmm4, -64(%rdi,%rdx)
        movups  %xmm5, -48(%rdi,%rdx)
        movups  %xmm6, -32(%rdi,%rdx)
        movups  %xmm7, -16(%rdi,%rdx)
        ret
.Lcopy_tiny:
        cmpl    $8, %edx
        jb      1f
        movq    (%rsi), %rcx
        movq    -8(%rsi,%rdx), %r8
        movq    %rcx, (%rdi)
        movq    %r8, -8(%rdi,%rdx)
        ret
1:      cmpl    $4, %edx
        jb      2f
        movl    (%rsi), %ecx
        movl    -4(%rsi,%rdx), %r8d
        movl    %ecx, (%rdi)
        movl    %r8d, -4(%rdi,%rdx)
        ret
2:      testl   %edx, %edx
        jz      3f
        movzbl  (%rsi), %ecx
        movzbl  -1(%rsi,%rdx), %r8d
        cmpl    $3, %edx
        jne     4f
        movzbl  1(%rsi), %r9d
        movb    %r9b, 1(%rdi)
4:      movb    %cl, (%rdi)
        movb    %r8b, -1(%rdi,%rdx)
3:      ret

.Lcopy_over_128:
        cmpq    $1024, %rdx
        jb      .Lcopy_forward
        movq    -8(%rsi,%rdx), %r8                      # the last 8 bytes, which it may write over
        leaq    -8(%rdi,%rdx), %r9
        movq    %rdx, %rcx
        shrq    $3, %rcx
        rep movsq
        movq    %r8, (%r9)
        ret
# The last 64 bytes are loaded first: they may overlap what the loop writes when memmove sent us here.
.Lcopy_forward:
        movups  -64(%rsi,%rdx), %xmm4
        movups  -48(%rsi,%rdx), %xmm5
        movups  -32(%rsi,%rdx), %xmm6
        movups  -16(%rsi,%rdx), %xmm7
        leaq    -64(%rdi,%rdx), %r8                     # where the last 64 bytes go
        .balign 16
5:      movups  (%rsi), %xmm0
        movups  16(%rsi), %xmm1
        movups  32(%rsi), %xmm2
        movups  48(%rsi), %xmm3
        movups  %xmm0, (%rdi)
        movups  %xmm1, 16(%rdi)
        movups  %xmm2, 32(%rdi)
        movups  %xmm3, 48(%rdi)
        addq    $64, %rsi
        addq    $64, %rdi
        cmpq    %r8, %rdi
        jb      5b
        movups  %xmm4, (%r8)
        movups  %xmm5, 16(%r8)
        movups  %xmm6, 32(%r8)
        movups  %xmm7, 48(%r8)
        ret

# src < dst < src + len: small sizes load everything first and need no care, long ones go backwards.
.Lmove_overlap:
        cmpq    $128, %rdx
        jbe     drayage_memcpy
        movq    %rdi, %rax
        movups  (%rsi), %xmm4                           # the first 64 bytes, written last
        movups  16(%rsi), %xmm5
        movups  32(%rsi), %xmm6
        movups  48(%rsi), %xmm7
6:      movups  -16(%rsi,%rdx), %xmm0
        movups  -32(%rsi,%rdx), %xmm1
        movups  -48(%rsi,%rdx), %xmm2
        movups  -64(%rsi,%rdx), %xmm3
        movups  %xmm0, -16(%rdi,%rdx)
        movups  %xmm1, -32(%rdi,%rdx)
        movups  %xmm2, -48(%rdi,%rdx)
        movups  %xmm3, -64(%rdi,%rdx)
        subq    $64, %rdx
        cmpq    $64, %rdx
        ja      6b
        movups  %xmm4, (%rdi)
        movups  %xmm5, 16(%rdi)
        movups  %xmm6, 32(%rdi)
        movups  %xmm7, 48(%rdi)
        ret

        .balign 16
drayage_memset:
        movq    %rdi, %rax
        movzbl  %sil, %esi
        movabsq $0x0101010101010101, %rcx
        imulq   %rcx, %rsi                              # the byte, eight times
        cmpq    $16, %rdx
        jb      7f
        movq    %rsi, %xmm0
        punpcklqdq %xmm0, %xmm0
        movups  %xmm0, -16(%rdi,%rdx)
        cmpq    $1024, %rdx
        jae     9f
8:      movups  %xmm0, (%rdi)
        addq    $16, %rdi
        subq    $16, %rdx
        cmpq    $16, %rdx
        ja      8b                                      # the last 16 bytes are written already
        ret
9:      movq    %rdx, %rcx
        movq    %rax, %r8
        movq    %rsi, %rax
        shrq    $3, %rcx
        rep stosq                                       # the tail is written already
        movq    %r8, %rax
        ret
7:      cmpl    $8, %edx
        jb      10f
        movq    %rsi, (%rdi)
        movq    %rsi, -8(%rdi,%rdx)
        ret
10:     testl   %edx, %edx
        jz      12f
11:     movb    %sil, -1(%rdi,%rdx)
        decl    %edx
        jnz     11b
12:     ret

        .balign 16
drayage_memcmp:
        cmpq    $8, %rdx
        jb      14f
13:     movq    (%rdi), %rax
        movq    (%rsi), %rcx
        cmpq    %rcx, %rax
        jne     16f
        addq    $8, %rdi
        addq    $8, %rsi
        subq    $8, %rdx
        cmpq    $8, %rdx
        jae     13b
14:     testq   %rdx, %rdx
        jz      15f
        movzbl  (%rdi), %eax
        movzbl  (%rsi), %ecx
        subl    %ecx, %eax
        jne     17f
        incq    %rdi
        incq    %rsi
        decq    %rdx
        jmp     14b
15:     xorl    %eax, %eax
17:     ret
16:     bswapq  %rax                                    # big endian compares like bytes do
        bswapq  %rcx
        cmpq    %rcx, %rax
        sbbl    %eax, %eax                              # -1 when below
        orl     $1, %eax
        ret

        .balign 16
drayage_strlen:
        movq    %rdi, %rax
18:     cmpb    $0, (%rax)
        je      19f
        incq    %rax
        jmp     18b
19:     subq    %rdi, %rax
        ret

        .text
