/* The flash kernel's source as a string, for compiling it at run time behind a user's expressions.
 * The assembler includes the files (paths from the project's root, where make runs); the includes
 * below hold nothing but tell make what this object is made from. */
#include "kernels/cpu/flash_abi.h"

#define FLASH_TEXT_ONLY
#include "kernels/cpu/flash.h"
#include "kernels/cpu/flash_docs.h"
#include "kernels/cpu/flash_score.h"
#include "kernels/cpu/flash_tile.h"
#include "kernels/cpu/flash_vec.h"

extern const char flash_text[];

__asm__(
    ".section .rodata\n"
    ".global flash_text\n"
    "flash_text:\n"
    ".ascii \"#define FLEX_RUNTIME 1\\n\"\n"
    ".incbin \"kernels/cpu/flash_abi.h\"\n"
    ".incbin \"kernels/cpu/flash_vec.h\"\n"
    ".incbin \"kernels/cpu/flash_tile.h\"\n"
    ".incbin \"kernels/cpu/flash_score.h\"\n"
    ".incbin \"kernels/cpu/flash.h\"\n"
    ".incbin \"kernels/cpu/flash_docs.h\"\n"
    ".byte 0\n"
    ".type flash_text, @object\n"
    ".size flash_text, . - flash_text\n"
    ".previous\n");
