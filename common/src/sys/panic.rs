//! What a panic says and how it ends. In place of functions of the libc and the
//! unwinder that bring more into each binary than all the rest.

use std::ffi::c_int;

use super::exit_now;

/// A panic is a mistake of ours, and ends the program with its message, file
/// and line. The frames below it, which std asks for here, would cost each
/// binary 200 KiB to read and name; so there are none.
// SAFETY: std is the only caller, by this name and type (the unwinding ABI);
// ending the walk before the first frame is one of the answers it expects.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_frame: *const u8, _argument: *const u8) -> c_int {
    const END_OF_STACK: c_int = 5;
    END_OF_STACK
}

/// Where std's own landing pads would go on with a panic that is unwinding. None
/// ever is; but the unwinder behind it would be another 50 KiB in each binary.
// SAFETY: as above; it does not return, as the ABI has it.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *const u8) -> ! {
    exit_now(ABORTED)
}

/// Where a panic ends, and an allocation that fails. The libc's would raise SIGABRT,
/// and musl's in a child of `fork_into`, which it takes for the parent still, there.
// SAFETY: whoever calls abort(3) expects that it does not return.
#[unsafe(no_mangle)]
extern "C" fn abort() -> ! {
    exit_now(ABORTED)
}

/// What std's personality routine would ask the unwinder. Nobody asks; but with the
/// answers comes printf(3) of the libc: 20 KiB in each binary.
macro_rules! never_called {
    ($($name:ident)*) => {
        $(
            // SAFETY: as above; whatever a caller passes is not looked at.
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> ! {
                exit_now(ABORTED)
            }
        )*
    };
}

never_called! {
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_SetGR
    _Unwind_SetIP
}

/// As the shell has it of a program that SIGABRT ended.
const ABORTED: u8 = 128 + 6;
