//! The binary interfaces of MPI libraries: the types of handles, and the values of the few that are used here.
//!
//! All calls move bytes, so the only datatype is `MPI_BYTE`, and the only communicator `MPI_COMM_WORLD`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use libloading::os::unix::Library;

use crate::error::{Error, Result};

/// The longest text of `MPI_Get_library_version` in any interface; those of `MPI_Error_string` are shorter.
const LONGEST_TEXT: usize = 8192;
/// `MPI_THREAD_SERIALIZED` of Open MPI and MPICH: several threads may call MPI, one at a time.
const SERIALIZED: c_int = 2;
/// The same in MPI 5.
const SERIALIZED_MPI_5: c_int = 2048;

/// The handles that are used, each of type `H`.
#[derive(Clone, Copy)]
struct Handles<H> {
    /// `MPI_BYTE`
    byte: H,
    /// `MPI_COMM_WORLD`
    world: H,
    /// `MPI_ERRORS_RETURN`
    errors_return: H,
}

/// The functions that are used, for handles of type `H`: MPI 5.0, chapters 3, 6, 9 and 11.
struct Functions<H> {
    byte: H,
    world: H,
    errors_return: H,
    comm_set_errhandler: unsafe extern "C" fn(H, H) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    comm_rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    comm_size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    isend: unsafe extern "C" fn(*const c_void, c_int, H, c_int, c_int, H, *mut H) -> c_int,
    irecv: unsafe extern "C" fn(*mut c_void, c_int, H, c_int, c_int, H, *mut H) -> c_int,
    test: unsafe extern "C" fn(*mut H, *mut c_int, *mut c_void) -> c_int,
    allgather: unsafe extern "C" fn(*const c_void, c_int, H, *mut c_void, c_int, H, H) -> c_int,
    bcast: unsafe extern "C" fn(*mut c_void, c_int, H, c_int, H) -> c_int,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
}

/// A type of handles.
trait Handle: Copy {
    const NULL: Self;
    fn to_bits(self) -> usize;
    fn from_bits(bits: usize) -> Self;
}

impl Handle for *mut c_void {
    const NULL: Self = null_mut();

    fn to_bits(self) -> usize {
        self.expose_provenance()
    }

    fn from_bits(bits: usize) -> Self {
        std::ptr::with_exposed_provenance_mut(bits)
    }
}

impl Handle for c_int {
    const NULL: Self = 0;

    fn to_bits(self) -> usize {
        self as u32 as usize
    }

    fn from_bits(bits: usize) -> Self {
        bits as u32 as Self
    }
}

/// A message on its way: the library's request.
pub(crate) struct Message(usize);

/// The end of a message of some bytes: another rank, and a number that tells apart what travels at one time.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) rank: usize,
    /// Below 32768, which every library allows.
    pub(crate) tag: u16,
}

/// A library after `MPI_Init_thread`.
pub(crate) struct Mpi {
    functions: Interface,
    /// Its name, for messages.
    name: String,
}

// SAFETY: handles are not memory of a thread, and with `MPI_THREAD_SERIALIZED` any thread may call MPI. `Mpi` is not `Sync`, so
// there is one call at a time.
unsafe impl Send for Mpi {}

/// The functions by the type of their handles.
enum Interface {
    /// Open MPI, and the interface of MPI 5.
    Pointers(Functions<*mut c_void>),
    /// MPICH.
    Integers(Functions<c_int>),
}

/// Calls a function of either interface with the handles of that interface.
macro_rules! call {
    ($mpi:expr, |$functions:ident| $call:expr) => {
        match &$mpi.functions {
            Interface::Pointers($functions) => $call,
            Interface::Integers($functions) => $call,
        }
    };
}

impl Mpi {
    /// Starts MPI with an open library. `name` is its path, or the file name that the system's loader looked up.
    pub(crate) fn start(library: Library, name: &str) -> Result<Self> {
        let file_name = name.rsplit('/').next().unwrap_or(name);
        let object = |symbol| address(&library, symbol);
        let functions = if let (Some(world), Some(byte), Some(errors_return)) =
            (object("ompi_mpi_comm_world"), object("ompi_mpi_byte"), object("ompi_mpi_errors_return"))
        {
            // Open MPI's handles are the addresses of these objects (its mpi.h).
            init(&library, name, SERIALIZED)?;
            Interface::Pointers(Functions::load(&library, name, Handles { byte, world, errors_return })?)
        } else if file_name.starts_with("libmpi_abi.") {
            // MPI 5.0, section 20.3, and the MPI Forum's header (github.com/mpi-forum/mpi-abi-stubs, mpi.h).
            init(&library, name, SERIALIZED_MPI_5)?;
            let [world, byte, errors_return] = [0x101_usize, 0x247, 0x143].map(|value| value as *mut c_void);
            Interface::Pointers(Functions::load(&library, name, Handles { byte, world, errors_return })?)
        } else {
            let version = version(&library, name)?;
            if !["MPICH", "Intel(R) MPI", "MVAPICH"].iter().any(|known| version.contains(known)) {
                let reason = format!(
                    "its version is '{}', and folio knows Open MPI, MPICH, Intel MPI and MPI 5",
                    version.trim()
                );
                return Err(Error::Unknown { library: name.to_owned(), reason });
            }
            // The interface that MPICH, Intel MPI and MVAPICH have agreed on (MPICH's mpi.h).
            init(&library, name, SERIALIZED)?;
            let (world, byte, errors_return) = (0x4400_0000, 0x4c00_010d, 0x5400_0001);
            Interface::Integers(Functions::load(&library, name, Handles { byte, world, errors_return })?)
        };
        // The library stays in memory: some keep threads, or handlers that run when the process exits.
        std::mem::forget(library);
        let mpi = Self { functions, name: name.to_owned() };
        // SAFETY: MPI has been initialized, and both handles are predefined.
        let code = call!(mpi, |functions| unsafe {
            (functions.comm_set_errhandler)(functions.world, functions.errors_return)
        });
        mpi.check("MPI_Comm_set_errhandler", code)?;
        Ok(mpi)
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// This process in `MPI_COMM_WORLD`.
    pub(crate) fn rank(&self) -> Result<usize> {
        let mut rank = 0;
        // SAFETY: the pointer is valid during the call; MPI has been initialized.
        let code = call!(self, |functions| unsafe { (functions.comm_rank)(functions.world, &mut rank) });
        self.check("MPI_Comm_rank", code)?;
        Ok(usize::try_from(rank).expect("a rank"))
    }

    /// The number of processes in `MPI_COMM_WORLD`.
    pub(crate) fn world_size(&self) -> Result<usize> {
        let mut size = 0;
        // SAFETY: as in `rank`.
        let code = call!(self, |functions| unsafe { (functions.comm_size)(functions.world, &mut size) });
        self.check("MPI_Comm_size", code)?;
        Ok(usize::try_from(size).expect("a size"))
    }

    /// Begins to send `len` bytes.
    ///
    /// # Safety
    /// They must be valid, and not be written to, until [`Mpi::test`] returns true.
    ///
    /// # Panics
    /// If there are 2 GiB or more.
    pub(crate) unsafe fn send(&self, bytes: *const u8, len: usize, to: Address) -> Result<Message> {
        let (len, rank, tag) = (count(len), count(to.rank), c_int::from(to.tag));
        let (code, message) = call!(self, |functions| {
            let mut request = Handle::NULL;
            // SAFETY: as the caller promises.
            let code = unsafe {
                let (byte, world) = (functions.byte, functions.world);
                (functions.isend)(bytes.cast(), len, byte, rank, tag, world, &mut request)
            };
            (code, Message(request.to_bits()))
        });
        self.check("MPI_Isend", code).map(|()| message)
    }

    /// Begins to receive `len` bytes.
    ///
    /// # Safety
    /// They must be valid, and be neither read nor written to, until [`Mpi::test`] returns true.
    ///
    /// # Panics
    /// If there are 2 GiB or more.
    pub(crate) unsafe fn receive(&self, bytes: *mut u8, len: usize, from: Address) -> Result<Message> {
        let (len, rank, tag) = (count(len), count(from.rank), c_int::from(from.tag));
        let (code, message) = call!(self, |functions| {
            let mut request = Handle::NULL;
            // SAFETY: as the caller promises.
            let code = unsafe {
                let (byte, world) = (functions.byte, functions.world);
                (functions.irecv)(bytes.cast(), len, byte, rank, tag, world, &mut request)
            };
            (code, Message(request.to_bits()))
        });
        self.check("MPI_Irecv", code).map(|()| message)
    }

    /// Whether a message has been sent or received. After that it must not be tested again.
    pub(crate) fn test(&self, message: &mut Message) -> Result<bool> {
        // Larger than the status of any library.
        let mut status = [0_u64; 32];
        let mut is_complete = 0;
        let code = call!(self, |functions| {
            let mut request = Handle::from_bits(message.0);
            // SAFETY: the request is one that has not completed; the pointers are valid during the call.
            let code =
                unsafe { (functions.test)(&mut request, &mut is_complete, status.as_mut_ptr().cast()) };
            message.0 = request.to_bits();
            code
        });
        self.check("MPI_Test", code)?;
        Ok(is_complete != 0)
    }

    /// Receives the `send` of rank i in part i of `receive`.
    ///
    /// # Panics
    /// If `receive` does not have the length of `send` times `ranks`, or `send` has 2 GiB or more.
    pub(crate) fn all_gather(&self, send: &[u8], receive: &mut [u8], ranks: usize) -> Result<()> {
        assert_eq!(receive.len(), send.len() * ranks, "lengths of the buffers");
        let part = count(send.len());
        let (from, to) = (send.as_ptr().cast(), receive.as_mut_ptr().cast());
        // SAFETY: `receive` has `ranks` parts of `part` bytes, and cannot overlap `send`.
        let code = call!(self, |functions| unsafe {
            (functions.allgather)(from, part, functions.byte, to, part, functions.byte, functions.world)
        });
        self.check("MPI_Allgather", code)
    }

    /// Receives the bytes of rank 0.
    ///
    /// # Panics
    /// If there are 2 GiB or more.
    pub(crate) fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let (buffer, len) = (bytes.as_mut_ptr().cast(), count(bytes.len()));
        // SAFETY: the buffer has `len` bytes.
        let code = call!(self, |functions| unsafe {
            (functions.bcast)(buffer, len, functions.byte, 0, functions.world)
        });
        self.check("MPI_Bcast", code)
    }

    /// Ends all ranks.
    pub(crate) fn abort(&self, exit_code: i32) {
        // SAFETY: MPI has been initialized, and not been finalized: that takes `self`.
        call!(self, |functions| unsafe { (functions.abort)(functions.world, exit_code) });
    }

    /// Waits until every rank has called this, and ends MPI.
    pub(crate) fn finalize(self) -> Result<()> {
        // SAFETY: MPI has been initialized, and `self` ends here.
        let code = call!(self, |functions| unsafe { (functions.finalize)() });
        self.check("MPI_Finalize", code)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        // `MPI_SUCCESS` is 0 in every interface.
        if code == 0 {
            return Ok(());
        }
        let mut text = vec![0_u8; LONGEST_TEXT];
        let mut len = 0;
        // SAFETY: the buffer has the largest length of any interface.
        let described = call!(self, |functions| unsafe {
            (functions.error_string)(code, text.as_mut_ptr().cast(), &mut len)
        });
        text.truncate(usize::try_from(len).unwrap_or(0));
        let text = String::from_utf8_lossy(&text);
        // MPICH's have several lines.
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let reason =
            if described == 0 && !lines.is_empty() { lines.join("; ") } else { format!("code {code}") };
        Err(Error::Call { call, library: self.name.clone(), reason })
    }
}

impl<H> Functions<H> {
    fn load(library: &Library, name: &str, handles: Handles<H>) -> Result<Self> {
        let Handles { byte, world, errors_return } = handles;
        // SAFETY: the types are those of MPI 5.0, appendix A.3, with the library's type of handles.
        unsafe {
            Ok(Self {
                byte,
                world,
                errors_return,
                comm_set_errhandler: function(library, name, "MPI_Comm_set_errhandler")?,
                error_string: function(library, name, "MPI_Error_string")?,
                comm_rank: function(library, name, "MPI_Comm_rank")?,
                comm_size: function(library, name, "MPI_Comm_size")?,
                isend: function(library, name, "MPI_Isend")?,
                irecv: function(library, name, "MPI_Irecv")?,
                test: function(library, name, "MPI_Test")?,
                allgather: function(library, name, "MPI_Allgather")?,
                bcast: function(library, name, "MPI_Bcast")?,
                abort: function(library, name, "MPI_Abort")?,
                finalize: function(library, name, "MPI_Finalize")?,
            })
        }
    }
}

/// `MPI_Init_thread`.
fn init(library: &Library, name: &str, level: c_int) -> Result<()> {
    type InitThread = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
    // SAFETY: the type is that of the standard. Null stands for no arguments; `provided` is valid during the call.
    let (code, provided) = unsafe {
        let init: InitThread = function(library, name, "MPI_Init_thread")?;
        let mut provided = 0;
        (init(null_mut(), null_mut(), level, &mut provided), provided)
    };
    check("MPI_Init_thread", code, name)?;
    if provided < level {
        let reason = "does not allow calls from several threads, even one at a time".to_owned();
        return Err(Error::Unknown { library: name.to_owned(), reason });
    }
    Ok(())
}

/// `MPI_Get_library_version`, which may be called before `MPI_Init_thread`.
fn version(library: &Library, name: &str) -> Result<String> {
    type GetLibraryVersion = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
    let mut text = vec![0_u8; LONGEST_TEXT];
    // SAFETY: the type is that of the standard, and the buffer has the largest length that it allows.
    let (code, len) = unsafe {
        let get: GetLibraryVersion = function(library, name, "MPI_Get_library_version")?;
        let mut len = 0;
        (get(text.as_mut_ptr().cast(), &mut len), len)
    };
    check("MPI_Get_library_version", code, name)?;
    text.truncate(usize::try_from(len).unwrap_or(0));
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A function of a library.
///
/// # Safety
/// `F` must be its type, and must not be used after `library` is dropped.
unsafe fn function<F: Copy>(library: &Library, name: &str, symbol: &'static str) -> Result<F> {
    // SAFETY: as the caller promises.
    let found = unsafe { library.get::<F>(symbol) };
    found
        .map(|found| *found)
        .map_err(|_| Error::Unknown { library: name.to_owned(), reason: format!("has no function {symbol}") })
}

/// The address of a symbol.
fn address(library: &Library, symbol: &str) -> Option<*mut c_void> {
    // SAFETY: the address is not dereferenced.
    let found = unsafe { library.get::<*mut c_void>(symbol) };
    found.ok().map(|found| found.as_raw_ptr())
}

fn check(call: &'static str, code: c_int, name: &str) -> Result<()> {
    // Before MPI is initialized, `MPI_Error_string` may be missing.
    let reason = format!("code {code}");
    if code == 0 { Ok(()) } else { Err(Error::Call { call, library: name.to_owned(), reason }) }
}

fn count(bytes: usize) -> c_int {
    c_int::try_from(bytes).unwrap_or_else(|_| panic!("{bytes} bytes are too many for one call"))
}
