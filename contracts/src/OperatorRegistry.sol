// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IOperatorRegistry} from "./IOperatorRegistry.sol";

/// Operators, their ranges of the sortition, their stakes (docs/spec/17-registry.md).
///
/// An operator deposits a stake and its VRF key itself; the owner, a dispatcher, gives it a range. The owner cannot touch
/// a stake: only the court can, for a game that the operator lost. Ranges are half-open, [start, end).
/// The functions of the original network's contract keep their names and selectors.
contract OperatorRegistry is IOperatorRegistry {
    struct Operator {
        uint128 stake; // wei
        uint64 exitAt; // seconds; 0: not leaving
        uint32 locks; // games that run
        uint32 index; // in `operators`, from 1; 0: has no range
        bytes32 vrfKey;
    }

    struct Range {
        uint128 start;
        uint128 end;
    }

    struct Anchor {
        bytes32 root;
        uint64 size;
    }

    error NotOwner();
    error NotCourt();
    error CourtIsSet();
    error NoCourt();
    error NoVrfKey();
    error VrfKeyDiffers();
    error NothingDeposited();
    error StakeTooLarge();
    error StakeTooSmall();
    error IsLeaving();
    error NotLeaving();
    error IsRegistered();
    error NotRegistered();
    error BadRange();
    error BadParameter();
    error ExitNotDue(uint64 exitAt);
    error GamesRun(uint32 games);
    error NothingLocked();
    error NothingOwed();
    error NotPaid();
    error AnchorNotLarger();

    event OperatorRegistered(address indexed operatorAddress, uint256 start, uint256 end);
    event OperatorRangeUpdated(address indexed operatorAddress, uint256 start, uint256 end);
    event OperatorRemoved(address indexed operatorAddress);
    event StakeDeposited(address indexed operatorAddress, bytes32 vrfKey, uint256 amount, uint256 stake);
    event ExitRequested(address indexed operatorAddress, uint64 exitAt);
    event OperatorExited(address indexed operatorAddress, uint256 amount);
    event StakeLocked(address indexed operatorAddress, uint32 locks);
    event StakeUnlocked(address indexed operatorAddress, uint32 locks);
    event Slashed(address indexed operatorAddress, address indexed challenger, uint256 amount, uint256 burnt, bytes32 indexed game);
    event Withdrawn(address indexed account, address indexed to, uint256 amount);
    event CourtSet(address indexed court);
    event LogAnchored(uint64 indexed size, bytes32 root);

    uint256 public immutable MAX_RANGE;
    uint256 public immutable minStake;
    uint64 public immutable exitDelay;
    address public immutable owner;
    address public court;
    /// The operators that have a range; a removal moves the last one into the gap.
    address[] public operators;
    /// What an account may withdraw, wei.
    mapping(address account => uint256 amount) public owed;
    /// Wei that no account will ever have again; it stays in this contract.
    uint256 public burnt;
    /// The log's last anchored checkpoint.
    Anchor public lastAnchor;
    mapping(address operatorAddress => Range) private _ranges;
    mapping(address operatorAddress => Operator) private _operators;

    modifier onlyOwner() {
        require(msg.sender == owner, NotOwner());
        _;
    }

    modifier onlyCourt() {
        require(msg.sender == court, NotCourt());
        _;
    }

    /// @param maxRange the sortition's precision, at most 2^53 - 1
    /// @param minStake_ wei that an operator needs for a range
    /// @param exitDelay_ seconds; longer than a claim is valid and a game can last
    constructor(uint256 maxRange, uint256 minStake_, uint64 exitDelay_) {
        require(maxRange > 0 && maxRange < 1 << 53 && minStake_ > 0 && minStake_ < 1 << 128, BadParameter());
        require(exitDelay_ > 0 && exitDelay_ < 1 << 40, BadParameter());
        MAX_RANGE = maxRange;
        minStake = minStake_;
        exitDelay = exitDelay_;
        owner = msg.sender;
    }

    // --- the operator

    /// Adds to the caller's stake. The first deposit sets its VRF key; later ones must name the same.
    function deposit(bytes32 vrfKey) external payable {
        Operator storage op = _operators[msg.sender];
        require(msg.value > 0, NothingDeposited());
        require(op.exitAt == 0, IsLeaving());
        if (op.vrfKey == 0) {
            require(vrfKey != 0, NoVrfKey());
            op.vrfKey = vrfKey;
        } else {
            require(op.vrfKey == vrfKey, VrfKeyDiffers());
        }
        uint256 stake = op.stake + msg.value;
        require(stake < 1 << 128, StakeTooLarge());
        op.stake = uint128(stake);
        emit StakeDeposited(msg.sender, vrfKey, msg.value, stake);
    }

    /// Gives up the range and begins the delay after which `exit` frees the stake.
    function requestExit() external {
        Operator storage op = _operators[msg.sender];
        require(op.vrfKey != 0, NotRegistered());
        require(op.exitAt == 0, IsLeaving());
        uint64 exitAt = uint64(block.timestamp) + exitDelay;
        op.exitAt = exitAt;
        _remove(msg.sender, op);
        emit ExitRequested(msg.sender, exitAt);
    }

    /// After the delay, and with no game running: the stake becomes withdrawable and the operator is forgotten.
    function exit() external {
        Operator storage op = _operators[msg.sender];
        require(op.exitAt != 0, NotLeaving());
        require(block.timestamp >= op.exitAt, ExitNotDue(op.exitAt));
        require(op.locks == 0, GamesRun(op.locks));
        uint256 amount = op.stake;
        delete _operators[msg.sender];
        owed[msg.sender] += amount;
        emit OperatorExited(msg.sender, amount);
    }

    /// Pays what the caller is owed, to an address of its choice.
    function withdraw(address payable to) external {
        uint256 amount = owed[msg.sender];
        require(amount > 0, NothingOwed());
        owed[msg.sender] = 0;
        emit Withdrawn(msg.sender, to, amount);
        (bool paid,) = to.call{value: amount}("");
        require(paid, NotPaid());
    }

    // --- the owner

    /// Gives an operator that has deposited `minStake` a range. Ranges may overlap here; a dispatcher keeps them apart.
    function registerOperator(address operatorAddress, uint256 start, uint256 end) external onlyOwner {
        Operator storage op = _operators[operatorAddress];
        require(op.index == 0, IsRegistered());
        require(op.exitAt == 0, IsLeaving());
        require(op.stake >= minStake, StakeTooSmall());
        operators.push(operatorAddress);
        op.index = uint32(operators.length);
        _setRange(operatorAddress, start, end);
        emit OperatorRegistered(operatorAddress, start, end);
    }

    function updateOperatorRange(address operatorAddress, uint256 start, uint256 end) external onlyOwner {
        require(_operators[operatorAddress].index != 0, NotRegistered());
        _setRange(operatorAddress, start, end);
        emit OperatorRangeUpdated(operatorAddress, start, end);
    }

    /// Once, and for ever: whoever can name another court can take the stakes.
    function setCourt(address court_) external onlyOwner {
        require(court == address(0), CourtIsSet());
        require(court_.code.length > 0, NoCourt());
        court = court_;
        emit CourtSet(court_);
    }

    /// Records a checkpoint of the network's log. Only ever larger ones: a log that forks shows here.
    function anchor(bytes32 root, uint64 size) external onlyOwner {
        require(size > lastAnchor.size, AnchorNotLarger());
        lastAnchor = Anchor(root, size);
        emit LogAnchored(size, root);
    }

    // --- the court

    /// @inheritdoc IOperatorRegistry
    function lock(address operatorAddress) external onlyCourt {
        Operator storage op = _operators[operatorAddress];
        // Not `minStake`: what a slash left answers for the operator's other claims.
        require(op.stake != 0, StakeTooSmall());
        require(op.exitAt == 0 || block.timestamp < op.exitAt, IsLeaving());
        uint32 locks = op.locks + 1;
        op.locks = locks;
        emit StakeLocked(operatorAddress, locks);
    }

    /// @inheritdoc IOperatorRegistry
    function unlock(address operatorAddress) external onlyCourt {
        emit StakeUnlocked(operatorAddress, _release(_operators[operatorAddress]));
    }

    /// @inheritdoc IOperatorRegistry
    function slash(address operatorAddress, address challenger, uint256 amount, bytes32 game) external onlyCourt {
        Operator storage op = _operators[operatorAddress];
        _release(op);
        if (amount > op.stake) amount = op.stake;
        op.stake -= uint128(amount);
        uint256 reward = amount / 2;
        owed[challenger] += reward;
        burnt += amount - reward;
        _remove(operatorAddress, op);
        emit Slashed(operatorAddress, challenger, amount, amount - reward, game);
    }

    // --- to read

    function operatorRanges(address operatorAddress) external view returns (uint256 start, uint256 end) {
        Range storage range = _ranges[operatorAddress];
        return (range.start, range.end);
    }

    function operatorInfo(address operatorAddress)
        external
        view
        returns (uint256 stake, bytes32 vrfKey, uint64 exitAt, uint32 locks, bool registered)
    {
        Operator storage op = _operators[operatorAddress];
        return (op.stake, op.vrfKey, op.exitAt, op.locks, op.index != 0);
    }

    function getNumOperators() external view returns (uint256) {
        return operators.length;
    }

    /// The operators whose range holds `value`. Reads every operator: for calls, not for transactions.
    function getOperatorsInRange(uint256 value) external view returns (address[] memory found) {
        uint256 count = operators.length;
        found = new address[](count);
        uint256 hits;
        for (uint256 i = 0; i < count; ++i) {
            address operatorAddress = operators[i];
            Range storage range = _ranges[operatorAddress];
            if (range.start <= value && value < range.end) found[hits++] = operatorAddress;
        }
        assembly ("memory-safe") {
            mstore(found, hits)
        }
    }

    // ---

    function _setRange(address operatorAddress, uint256 start, uint256 end) private {
        require(start < end && end <= MAX_RANGE, BadRange());
        _ranges[operatorAddress] = Range(uint128(start), uint128(end));
    }

    function _release(Operator storage op) private returns (uint32 locks) {
        require(op.locks > 0, NothingLocked());
        locks = op.locks - 1;
        op.locks = locks;
    }

    function _remove(address operatorAddress, Operator storage op) private {
        uint32 index = op.index;
        if (index == 0) return;
        address last = operators[operators.length - 1];
        operators[index - 1] = last;
        _operators[last].index = index;
        op.index = 0;
        operators.pop();
        delete _ranges[operatorAddress];
        emit OperatorRemoved(operatorAddress);
    }
}
